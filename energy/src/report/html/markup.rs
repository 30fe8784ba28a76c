//! The few shapes of HTML that the page is made of. Every text passes through [`escape`].

use std::fmt::Write;

/// Text that can stand between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// At most so many decimals, without zeros at the end.
pub(super) fn decimals(value: f64, most: usize) -> String {
    let shown = format!("{value:.most$}");
    match shown.contains('.') {
        true => shown.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => shown,
    }
}

/// A table of plain texts. A column whose header begins with `#` holds numbers.
pub(super) struct Table<'a> {
    pub(super) caption: &'a str,
    pub(super) headers: &'a [&'a str],
    pub(super) rows: Vec<Vec<String>>,
}

impl Table<'_> {
    /// In a frame of its own that scrolls when it is too wide for the page.
    pub(super) fn write(&self, out: &mut String) {
        let caption = escape(self.caption);
        // Writing to a string cannot fail.
        let _ = write!(out, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">");
        let _ = write!(out, "<table><caption>{caption}</caption><thead><tr>");
        for header in self.headers {
            let (class, name) = match header.strip_prefix('#') {
                Some(name) => (" class=\"number\"", name),
                None => ("", *header),
            };
            let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for (index, cell) in row.iter().enumerate() {
                let is_number = self.headers.get(index).is_some_and(|header| header.starts_with('#'));
                let class = if is_number { " class=\"number\"" } else { "" };
                match index {
                    0 => _ = write!(out, "<th scope=\"row\"{class}>{}</th>", escape(cell)),
                    _ => _ = write!(out, "<td{class}>{}</td>", escape(cell)),
                }
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }

    /// Folded away under a plot.
    pub(super) fn write_folded(&self, out: &mut String) {
        let _ = write!(out, "<details><summary>{}</summary>", escape(self.caption));
        self.write(out);
        out.push_str("</details>");
    }
}

/// A plot with its words.
pub(super) struct Figure<'a> {
    /// Which plot the page's script draws: `power`, `experts`, ...
    pub(super) plot: &'a str,
    /// Index of the run in the page's data.
    pub(super) run: usize,
    /// `wide` or `half`.
    pub(super) width: &'a str,
    /// What kind of plot it is.
    pub(super) label: &'a str,
    /// What one sees.
    pub(super) title: &'a str,
    /// Where the numbers come from.
    pub(super) note: &'a str,
}

impl Figure<'_> {
    /// Writes it; `below` adds lists and tables under the plot.
    pub(super) fn write(&self, out: &mut String, below: impl FnOnce(&mut String)) {
        let Figure { plot, run, width, .. } = self;
        let (label, title, note) = (escape(self.label), escape(self.title), escape(self.note));
        let _ = write!(
            out,
            "<figure class=\"card {width}\"><figcaption><p class=\"label\">{label}</p><h3>{title}</h3></figcaption>\
             <div class=\"plot {plot}\"><canvas data-plot=\"{plot}\" data-run=\"{run}\" role=\"img\" \
             aria-label=\"{label}: {title}\"></canvas></div>"
        );
        let _ = write!(out, "<p class=\"note\">{note}</p>");
        below(out);
        out.push_str("</figure>");
    }
}

/// The table of a time series, which the page's script fills from the plot's data when it is opened.
pub(super) fn write_series_table(out: &mut String, plot: &str, run: usize, caption: &str) {
    let _ = write!(
        out,
        "<details data-table=\"{plot}\" data-run=\"{run}\"><summary>{caption}</summary></details>",
        caption = escape(caption)
    );
}

/// Fills the places of a page, written `{{name}}`, in one pass: what is filled in is not looked at again.
pub(super) fn fill(page: &str, values: &[(&str, &str)]) -> String {
    let mut out =
        String::with_capacity(page.len() + values.iter().map(|(_, value)| value.len()).sum::<usize>());
    let mut rest = page;
    while let Some((before, behind)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((name, after)) = behind.split_once("}}") else { break };
        if let Some((_, value)) = values.iter().find(|(known, _)| *known == name) {
            out.push_str(value);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
