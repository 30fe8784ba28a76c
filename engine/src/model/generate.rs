//! Generation: the model continues a prompt token by token, with a key-value cache.

use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{Error, Tensor};
use wattle_router::Result;

use crate::autograd::Tape;
use crate::model::{Decoder, KvCache, ParameterStore, Pass, RoutingState};

/// How much is generated, and how each token is drawn from the model's distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token always.
    pub temperature: f64,
    /// Only the k likeliest tokens; 0 for no such limit.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities reach this sum; 1 for no such limit.
    pub top_p: f64,
    /// Seed of the draws: the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { max_tokens: 200, temperature: 0.8, top_k: 0, top_p: 0.95, seed: 0 }
    }
}

/// Continues `prompt` by up to `sampling.max_tokens` tokens; `on_token` sees each and may stop by returning false.
///
/// Beyond `max_positions` tokens the model goes on with the later half of its context.
///
/// # Errors
/// [`Error::Value`] for an empty prompt; any kernel error.
pub fn generate(
    decoder: &Decoder,
    store: &mut ParameterStore,
    routing: &mut [RoutingState],
    prompt: &[u32],
    max_positions: usize,
    sampling: &Sampling,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<()> {
    if prompt.is_empty() {
        let (got, expected) =
            ("no tokens".to_owned(), "at least one token; put the boundary token first".to_owned());
        return Err(Error::Value { op: "generate", what: "prompt", got, expected }.into());
    }
    let rng = Philox::new(sampling.seed, Purpose::Generate, 0);
    let mut context = prompt.to_vec();
    let mut pending = keep_last(&context, max_positions).to_vec();
    // No longer than what will be in it: some models could see a hundred thousand tokens.
    let capacity = max_positions.min(prompt.len() + sampling.max_tokens);
    let mut cache = decoder.new_cache(capacity)?;
    for index in 0..sampling.max_tokens {
        if cache.len() + pending.len() > max_positions {
            pending = keep_last(&context, (max_positions / 2).max(1)).to_vec();
            cache = decoder.new_cache(capacity)?;
        }
        let logits = next_logits(decoder, store, routing, &pending, &mut cache)?;
        let token = draw(&logits, sampling, rng.uniform(index as u64));
        context.push(token);
        if !on_token(token) {
            break;
        }
        pending = vec![token];
    }
    Ok(())
}

/// Runs the new tokens through the model and returns the logits after the last one.
fn next_logits(
    decoder: &Decoder,
    store: &mut ParameterStore,
    routing: &mut [RoutingState],
    tokens: &[u32],
    cache: &mut KvCache,
) -> Result<Vec<f32>> {
    let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let ids = Tensor::from_slice(&ids, &[1, ids.len()])?;
    let mut tape = Tape::forward_only(store);
    let hidden = decoder.forward(&mut tape, &ids, routing, Pass { cache: Some(cache), ..Pass::default() })?;
    drop(tape);
    routing.iter_mut().try_for_each(|layer| layer.take_load().map(drop))?;
    let d = hidden.value.last_dim();
    let all = hidden.value.to_f32_vec()?;
    let last = Tensor::from_slice(&all[all.len() - d..], &[1, d])?;
    let last = wattle_kernels::ops::elementwise::cast(&last, hidden.value.dtype())?;
    Ok(decoder.logits(store, &last)?.to_f32_vec()?)
}

fn keep_last(tokens: &[u32], count: usize) -> &[u32] {
    &tokens[tokens.len().saturating_sub(count)..]
}

/// Draws a token with the uniform value `u` in [0, 1).
fn draw(logits: &[f32], sampling: &Sampling, u: f64) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    // Likeliest first; NaN counts as impossible, and equal logits keep the order of their ids.
    let key = |id: u32| {
        let logit = logits[id as usize];
        if logit.is_nan() { f32::NEG_INFINITY } else { logit }
    };
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    if sampling.temperature <= 0.0 {
        return order[0];
    }
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let top = f64::from(key(order[0]));
    let mut weights: Vec<f64> =
        order.iter().map(|&id| ((f64::from(key(id)) - top) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let kept = weights.iter().position(|weight| {
        sum += weight / total;
        sum >= sampling.top_p
    });
    weights.truncate(kept.map_or(weights.len(), |last| last + 1));
    let mut threshold = u * weights.iter().sum::<f64>();
    for (id, weight) in order.iter().zip(&weights) {
        threshold -= weight;
        if threshold < 0.0 {
            return *id;
        }
    }
    order[weights.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, f32::NAN];

    fn sampling(temperature: f64, top_k: usize, top_p: f64) -> Sampling {
        Sampling { temperature, top_k, top_p, ..Sampling::default() }
    }

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        assert_eq!(draw(&LOGITS, &sampling(0.0, 0, 1.0), 0.99), 1);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        assert_eq!(draw(&LOGITS, &sampling(1.0, 1, 1.0), 0.999), 1);
        // The likeliest token holds 0.665 of the mass.
        assert_eq!(draw(&LOGITS, &sampling(1.0, 0, 0.5), 0.999), 1);
        assert_eq!(draw(&LOGITS, &sampling(1.0, 0, 0.7), 0.999), 2);
    }

    #[test]
    fn draws_follow_the_distribution_and_never_give_an_impossible_token() {
        let counts = (0..1000).fold([0; 4], |mut counts, i| {
            counts[draw(&LOGITS, &sampling(1.0, 0, 1.0), f64::from(i) / 1000.0) as usize] += 1;
            counts
        });
        assert!((counts[1] as f64 / 1000.0 - 0.665).abs() < 0.01, "{counts:?}");
        assert_eq!(counts[3], 0);
    }
}
