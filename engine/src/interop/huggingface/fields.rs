//! A config.json read key by key, so that no key is passed over unseen.

use serde_json::{Map, Value};

/// The keys of a JSON object that have not been asked for yet, and what was wrong with those that have.
pub(super) struct Fields {
    map: Map<String, Value>,
    pub(super) problems: Vec<String>,
}

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Fields { map, problems: Vec::new() }
    }

    /// A key's value; none when it is absent or null.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn parse<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(key)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.problems.push(format!("{key} is {value}, expected {expected}"));
        }
        parsed
    }

    /// A whole number.
    pub(super) fn size(&mut self, key: &str) -> Option<usize> {
        self.parse(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    /// A whole number that must be there. 0 when it is not: the problem is noted.
    pub(super) fn required_size(&mut self, key: &str) -> usize {
        match self.map.get(key) {
            None | Some(Value::Null) => {
                self.problems.push(format!("{key} is missing, expected a whole number"));
                0
            }
            Some(_) => self.size(key).unwrap_or(0),
        }
    }

    pub(super) fn number(&mut self, key: &str) -> Option<f64> {
        self.parse(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        self.parse(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.parse(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn object(&mut self, key: &str) -> Option<Map<String, Value>> {
        self.parse(key, "an object", |value| value.as_object().cloned())
    }

    pub(super) fn sizes(&mut self, key: &str) -> Option<Vec<usize>> {
        self.parse(key, "a list of whole numbers", |value| {
            value.as_array()?.iter().map(|item| usize::try_from(item.as_u64()?).ok()).collect()
        })
    }

    pub(super) fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.parse(key, "a list of texts", |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        })
    }

    /// A key that only one value of can be honoured; absent counts as that value.
    pub(super) fn only(&mut self, key: &str, supported: &Value) {
        if let Some(value) = self.take(key)
            && value != *supported
        {
            self.problems.push(format!("{key} is {value}; only {supported} is supported"));
        }
    }

    /// Keys that change nothing of what is computed.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Every problem; what is left over unasked may change the numbers and is one too, unless it says nothing.
    pub(super) fn finish(mut self) -> Vec<String> {
        for (key, value) in self.map {
            let says_nothing = value.is_null() || value == Value::Bool(false);
            if !says_nothing {
                self.problems
                    .push(format!("{key} is {value}; this key is not known and may change the numbers"));
            }
        }
        self.problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_key_is_asked_for_ignored_or_a_problem() {
        let Value::Object(map) = json!({
            "hidden_size": 8, "layers": "two", "use_cache": true, "new_trick": 1.5, "off": false, "none": null
        }) else {
            unreachable!()
        };
        let mut fields = Fields::new(map);
        assert_eq!(fields.size("hidden_size"), Some(8));
        assert_eq!(fields.size("layers"), None);
        assert_eq!(fields.required_size("heads"), 0);
        fields.only("off", &json!(false));
        fields.ignore(&["use_cache"]);
        assert_eq!(
            fields.finish(),
            [
                "layers is \"two\", expected a whole number",
                "heads is missing, expected a whole number",
                "new_trick is 1.5; this key is not known and may change the numbers",
            ]
        );
    }
}
