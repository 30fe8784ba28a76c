//! Router scores, expert selection and row sums on the CPU: every row is one thread's work.

use crate::cpu::math;
use crate::cpu::parallel::{for_each, rows_per_block};
use crate::cpu::reduce::{LANES, lane_sum};
use crate::cpu::simd::vectorised;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn softmax(logits_te: &Tensor, scores_te: &mut Tensor) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows(
        [(logits_te.data()?, e)],
        (scores_te.data_mut()?, e),
        #[inline(always)]
        |[x], s| {
            let max = maximum(x);
            for (s, x) in s.iter_mut().zip(x) {
                *s = math::exp(x - max);
            }
            let sum: f32 = lane_sum(s, |s| s);
            for s in s {
                *s /= sum;
            }
        },
    );
    Ok(())
}

pub(crate) fn softmax_backward(ds_te: &Tensor, s_te: &Tensor, dx_te: &mut Tensor) -> Result<()> {
    let e = s_te.last_dim();
    by_rows(
        [(ds_te.data()?, e), (s_te.data()?, e)],
        (dx_te.data_mut()?, e),
        #[inline(always)]
        |[ds, s], dx| {
            for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
                *dx = ds * s;
            }
            let dot: f32 = lane_sum(dx, |product| product);
            for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
                *dx = s * (ds - dot);
            }
        },
    );
    Ok(())
}

pub(crate) fn sigmoid(logits_te: &Tensor, scores_te: &mut Tensor) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows(
        [(logits_te.data()?, e)],
        (scores_te.data_mut()?, e),
        #[inline(always)]
        |[x], s| {
            for (s, &x) in s.iter_mut().zip(x) {
                *s = math::sigmoid(x);
            }
        },
    );
    Ok(())
}

pub(crate) fn sigmoid_backward(ds_te: &Tensor, s_te: &Tensor, dx_te: &mut Tensor) -> Result<()> {
    let e = s_te.last_dim();
    by_rows(
        [(ds_te.data()?, e), (s_te.data()?, e)],
        (dx_te.data_mut()?, e),
        #[inline(always)]
        |[ds, s], dx| {
            for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
                *dx = ds * s * (1.0 - s);
            }
        },
    );
    Ok(())
}

/// k times the largest key of a row, each found in one pass that vectorises and then struck out.
pub(crate) fn top_k(scores_te: &Tensor, bias_e: Option<&Tensor>, indices_tk: &mut Tensor) -> Result<()> {
    let (e, k) = (scores_te.last_dim(), indices_tk.last_dim());
    let no_bias = vec![0.0; e];
    let bias = match bias_e {
        Some(bias_e) => bias_e.data::<f32>()?,
        None => &no_bias,
    };
    let rows = rows_per_block((e + k) * size_of::<f32>());
    let tasks =
        scores_te.data::<f32>()?.chunks(rows * e).zip(indices_tk.data_mut::<i32>()?.chunks_mut(rows * k));
    for_each(tasks, |(scores, indices)| {
        let mut keys = vec![STRUCK_OUT; e];
        vectorised(
            #[inline(always)]
            || {
                for (scores, indices) in scores.chunks_exact(e).zip(indices.chunks_exact_mut(k)) {
                    for (((key, score), bias), expert) in keys.iter_mut().zip(scores).zip(bias).zip(0u32..) {
                        *key = sort_key(score + bias, expert);
                    }
                    for index in indices {
                        let best = largest(&keys);
                        *index = expert_of(best);
                        keys[expert_of(best) as usize] = STRUCK_OUT;
                    }
                }
            },
        );
    });
    Ok(())
}

pub(crate) fn select(scores_te: &Tensor, indices_tk: &Tensor, weights_tk: &mut Tensor) -> Result<()> {
    let (e, k) = (scores_te.last_dim(), indices_tk.last_dim());
    let (scores, indices) = (scores_te.data::<f32>()?, indices_tk.data::<i32>()?);
    let weights = weights_tk.data_mut::<f32>()?;
    for (i, (weight, &index)) in weights.iter_mut().zip(indices).enumerate() {
        *weight = scores[i / k * e + index as usize];
    }
    Ok(())
}

pub(crate) fn select_backward(dw_tk: &Tensor, indices_tk: &Tensor, ds_te: &mut Tensor) -> Result<()> {
    let (e, k) = (ds_te.last_dim(), indices_tk.last_dim());
    let (dw, indices) = (dw_tk.data::<f32>()?, indices_tk.data::<i32>()?);
    let ds = ds_te.data_mut::<f32>()?;
    for (i, (dw, &index)) in dw.iter().zip(indices).enumerate() {
        ds[i / k * e + index as usize] += dw;
    }
    Ok(())
}

pub(crate) fn logsumexp(logits_te: &Tensor, lse_t: &mut Tensor) -> Result<()> {
    by_rows(
        [(logits_te.data()?, logits_te.last_dim())],
        (lse_t.data_mut()?, 1),
        #[inline(always)]
        |[x], lse| {
            let max = maximum(x);
            lse[0] = max + lane_sum(x, |x: f32| math::exp(x - max)).ln();
        },
    );
    Ok(())
}

pub(crate) fn logsumexp_backward(
    dlse_t: &Tensor,
    logits_te: &Tensor,
    lse_t: &Tensor,
    dx_te: &mut Tensor,
) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows(
        [(logits_te.data()?, e), (lse_t.data()?, 1), (dlse_t.data()?, 1)],
        (dx_te.data_mut()?, e),
        #[inline(always)]
        |[x, lse, dlse], dx| {
            let (lse, dlse) = (lse[0], dlse[0]);
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx += dlse * math::exp(x - lse);
            }
        },
    );
    Ok(())
}

pub(crate) fn entropy(scores_te: &Tensor, entropy_t: &mut Tensor) -> Result<()> {
    by_rows(
        [(scores_te.data()?, scores_te.last_dim())],
        (entropy_t.data_mut()?, 1),
        #[inline(always)]
        |[scores], entropy| {
            let total: f32 = lane_sum(scores, |s| s);
            // 0·ln 0 counts as 0; NaN is not 0 and stays.
            let term = |s: f32| if s == 0.0 { 0.0 } else { s * (s / total).ln() };
            entropy[0] = -scores.iter().map(|&s| term(s)).sum::<f32>() / total;
        },
    );
    Ok(())
}

/// Gives `body`, an `#[inline(always)]` closure, the rows of the same number from each input and from the output;
/// they come with their widths. A row is never split, so the bits do not depend on the number of threads.
fn by_rows<const N: usize>(
    inputs: [(&[f32], usize); N],
    (out, out_width): (&mut [f32], usize),
    body: impl Fn([&[f32]; N], &mut [f32]) + Send + Sync,
) {
    if out.is_empty() {
        return;
    }
    let width = out_width + inputs.iter().map(|(_, width)| width).sum::<usize>();
    let rows = rows_per_block(width * size_of::<f32>());
    for_each(out.chunks_mut(rows * out_width).enumerate(), |(block, out)| {
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(out_width).enumerate() {
                    body(inputs.map(|(x, width)| &x[(block * rows + row) * width..][..width]), out);
                }
            },
        );
    });
}

/// The largest number; NaN is passed over here and comes back through the exponentials.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// Below the key of every expert.
const STRUCK_OUT: u64 = 0;

/// A key that sorts as top-k does: by value with NaN below all numbers, then lower experts above higher ones.
#[inline(always)]
fn sort_key(value: f32, expert: u32) -> u64 {
    // -0 becomes 0, as the two are equal.
    let bits = (value + 0.0).to_bits();
    // Negative floats rise as their bits fall; the sign bit then lifts the positive ones above them.
    let rising = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    let rising = if value.is_nan() { 0 } else { rising };
    u64::from(rising) << 32 | u64::from(u32::MAX - expert)
}

#[inline(always)]
fn expert_of(key: u64) -> i32 {
    (u32::MAX - key as u32) as i32
}

#[inline(always)]
fn largest(keys: &[u64]) -> u64 {
    keys.iter().copied().fold(STRUCK_OUT, u64::max)
}

#[cfg(test)]
mod tests {
    use crate::cpu::routing as body;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::error::Result;
    use crate::reference::routing as reference;
    use crate::tensor::Tensor;
    use crate::testing::{assert_close, bits, central_difference, dot, in_pools, tensor, values};

    const T: usize = 41;
    const E: usize = 24;
    const K: usize = 5;

    type Pass = fn(&Tensor, &mut Tensor) -> Result<()>;

    /// What `pass` writes into a tensor of `shape`.
    fn run(pass: Pass, x: &Tensor, shape: &[usize]) -> Tensor {
        let mut out = Tensor::scratch(shape, DType::F32, Device::Cpu).unwrap();
        pass(x, &mut out).unwrap();
        out
    }

    fn softmax(x: &Tensor) -> Tensor {
        run(body::softmax, x, x.shape())
    }

    fn sigmoid(x: &Tensor) -> Tensor {
        run(body::sigmoid, x, x.shape())
    }

    fn logsumexp(x: &Tensor) -> Tensor {
        run(body::logsumexp, x, &x.shape()[..1])
    }

    fn entropy(x: &Tensor) -> Tensor {
        run(body::entropy, x, &x.shape()[..1])
    }

    fn softmax_backward(ds: &Tensor, s: &Tensor) -> Tensor {
        let mut dx = Tensor::scratch(s.shape(), DType::F32, Device::Cpu).unwrap();
        body::softmax_backward(ds, s, &mut dx).unwrap();
        dx
    }

    fn sigmoid_backward(ds: &Tensor, s: &Tensor) -> Tensor {
        let mut dx = Tensor::scratch(s.shape(), DType::F32, Device::Cpu).unwrap();
        body::sigmoid_backward(ds, s, &mut dx).unwrap();
        dx
    }

    fn top_k(scores: &Tensor, bias: Option<&Tensor>, k: usize) -> Tensor {
        let mut indices = Tensor::scratch(&[scores.num_rows(), k], DType::I32, Device::Cpu).unwrap();
        body::top_k(scores, bias, &mut indices).unwrap();
        indices
    }

    fn select(scores: &Tensor, indices: &Tensor) -> Tensor {
        let mut chosen = Tensor::scratch(indices.shape(), DType::F32, Device::Cpu).unwrap();
        body::select(scores, indices, &mut chosen).unwrap();
        chosen
    }

    fn select_backward(dchosen: &Tensor, indices: &Tensor, e: usize) -> Tensor {
        let mut dscores = Tensor::zeros(&[indices.num_rows(), e], DType::F32, Device::Cpu).unwrap();
        body::select_backward(dchosen, indices, &mut dscores).unwrap();
        dscores
    }

    fn matrix(values: &[f64], columns: usize) -> Tensor {
        tensor(values, &[values.len() / columns, columns], DType::F32)
    }

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, &[1, values.len()]).unwrap()
    }

    #[test]
    fn forwards_follow_the_reference() {
        let x = values(T * E, 1);
        let scores = reference::softmax(&x, E);
        let logits_te = matrix(&x, E);
        assert_close(&softmax(&logits_te), &scores, 2e-6);
        assert_close(&sigmoid(&logits_te), &reference::sigmoid(&x), 1e-6);
        assert_close(&logsumexp(&logits_te), &reference::logsumexp(&x, E), 1e-6);
        assert_close(&entropy(&matrix(&scores, E)), &reference::entropy(&scores, E), 2e-6);
    }

    #[test]
    fn backwards_follow_the_reference() {
        let (x, ds) = (values(T * E, 1), values(T * E, 2));
        let (soft, logistic) = (reference::softmax(&x, E), reference::sigmoid(&x));
        let dscores_te = matrix(&ds, E);
        let got = softmax_backward(&dscores_te, &matrix(&soft, E));
        assert_close(&got, &reference::softmax_backward(&ds, &soft, E), 4e-6);
        let got = sigmoid_backward(&dscores_te, &matrix(&logistic, E));
        assert_close(&got, &reference::sigmoid_backward(&ds, &logistic), 1e-6);
    }

    #[test]
    fn reference_gradients_agree_with_central_differences() {
        let (x, ds) = (values(3 * E, 1), values(3 * E, 2));
        let analytic = reference::softmax_backward(&ds, &reference::softmax(&x, E), E);
        central_difference(|x| dot(&reference::softmax(x, E), &ds), &x, &analytic, 1e-7);
        let analytic = reference::sigmoid_backward(&ds, &reference::sigmoid(&x));
        central_difference(|x| dot(&reference::sigmoid(x), &ds), &x, &analytic, 1e-7);
    }

    #[test]
    fn logsumexp_backward_adds_its_gradient() {
        let (x, dl) = (values(T * E, 1), values(T, 3));
        let logits_te = matrix(&x, E);
        let mut dlogits_te = matrix(&vec![1.0; T * E], E);
        let dlse_t = tensor(&dl, &[T], DType::F32);
        let lse_t = logsumexp(&logits_te);
        body::logsumexp_backward(&dlse_t, &logits_te, &lse_t, &mut dlogits_te).unwrap();
        let got: Vec<f64> = dlogits_te.to_f32_vec().unwrap().iter().map(|&g| f64::from(g) - 1.0).collect();
        central_difference(|x| dot(&reference::logsumexp(x, E), &dl), &x, &got, 1e-5);
    }

    #[test]
    fn top_k_and_select_follow_the_reference() {
        let (scores, bias) = (values(T * E, 4), values(E, 5));
        let (scores_te, bias_e) = (matrix(&scores, E), tensor(&bias, &[E], DType::F32));
        for k in [1, K, E] {
            for (bias_e, bias) in [(None, &vec![0.0; E]), (Some(&bias_e), &bias)] {
                let indices_tk = top_k(&scores_te, bias_e, k);
                let want = reference::top_k(&scores, bias, k);
                assert_eq!(indices_tk.data::<i32>().unwrap(), want);
                let weights_tk = select(&scores_te, &indices_tk);
                assert_close(&weights_tk, &reference::select(&scores, &want, E, k), 0.0);
                let dw = values(T * k, 6);
                let got = select_backward(&matrix(&dw, k), &indices_tk, E);
                assert_close(&got, &reference::select_backward(&dw, &want, E, k), 0.0);
            }
        }
    }

    #[test]
    fn top_k_gives_ties_to_the_lower_index() {
        let zeros = top_k(&row(&[-0.0, 0.0, -0.0, -1.0]), None, 4);
        assert_eq!(zeros.data::<i32>().unwrap(), [0, 1, 2, 3]);
        let indices_tk = top_k(&row(&[1.0, 3.0, 1.0, 3.0, 3.0]), None, 4);
        assert_eq!(indices_tk.data::<i32>().unwrap(), [1, 3, 4, 0]);
    }

    #[test]
    fn top_k_puts_nan_after_every_number() {
        let scores_te = row(&[f32::NAN, f32::NEG_INFINITY, -f32::NAN, 0.5]);
        let indices_tk = top_k(&scores_te, None, 4);
        assert_eq!(indices_tk.data::<i32>().unwrap(), [3, 1, 0, 2]);
        let bias_e = Tensor::from_slice(&[0.0, 0.0, 0.0, f32::NAN], &[4]).unwrap();
        let indices_tk = top_k(&row(&[1.0, 2.0, 3.0, 4.0]), Some(&bias_e), 2);
        assert_eq!(indices_tk.data::<i32>().unwrap(), [2, 1]);
    }

    #[test]
    fn nan_stays_in_its_own_row() {
        let mut x: Vec<f32> = values(3 * E, 7).iter().map(|&x| x as f32).collect();
        x[E + 3] = f32::NAN;
        let logits_te = Tensor::from_slice(&x, &[3, E]).unwrap();
        for scores_te in [softmax(&logits_te), sigmoid(&logits_te)] {
            let nan_rows: Vec<bool> = scores_te
                .data::<f32>()
                .unwrap()
                .chunks(E)
                .map(|row| row.iter().any(|s| s.is_nan()))
                .collect();
            assert_eq!(nan_rows, [false, true, false]);
        }
        let lse_t = logsumexp(&logits_te);
        assert_eq!(
            lse_t.data::<f32>().unwrap().iter().map(|l| l.is_nan()).collect::<Vec<_>>(),
            [false, true, false]
        );
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let logits_te = row(&[1e4, 1e4, -1e4]);
        assert_eq!(softmax(&logits_te).data::<f32>().unwrap(), [0.5, 0.5, 0.0]);
        assert_eq!(sigmoid(&logits_te).data::<f32>().unwrap(), [1.0, 1.0, 0.0]);
        let lse = logsumexp(&logits_te).data::<f32>().unwrap()[0];
        assert!((lse - 10_000.693).abs() < 2e-3, "{lse}");
    }

    #[test]
    fn entropy_of_one_certain_expert_is_zero_and_of_equal_scores_is_ln_e() {
        let scores_te = Tensor::from_slice(&[0.0f32, 1.0, 0.0, 0.0, 0.9, 0.9, 0.9, 0.9], &[2, 4]).unwrap();
        let entropy_t = entropy(&scores_te);
        assert_close(&entropy_t, &[0.0, 4.0f64.ln()], 1e-6);
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        // Enough rows for several blocks.
        let logits_te = matrix(&values(2000 * E, 8), E);
        in_pools(|| {
            let scores_te = softmax(&logits_te);
            let indices_tk = top_k(&scores_te, None, K);
            let weights_tk = select(&scores_te, &indices_tk);
            let dscores_te = select_backward(&weights_tk, &indices_tk, E);
            let mut dlogits_te = softmax_backward(&dscores_te, &scores_te);
            let lse_t = logsumexp(&logits_te);
            body::logsumexp_backward(&entropy(&scores_te), &logits_te, &lse_t, &mut dlogits_te).unwrap();
            (indices_tk.data::<i32>().unwrap().to_vec(), bits(&dlogits_te), bits(&sigmoid(&logits_te)))
        });
    }

    #[test]
    fn no_tokens_give_empty_results() {
        let logits_te = Tensor::zeros(&[0, E], DType::F32, Device::Cpu).unwrap();
        let scores_te = softmax(&logits_te);
        let indices_tk = top_k(&scores_te, None, K);
        let weights_tk = select(&scores_te, &indices_tk);
        assert_eq!(weights_tk.shape(), [0, K]);
        assert_eq!(select_backward(&weights_tk, &indices_tk, E).shape(), [0, E]);
        assert_eq!(logsumexp(&logits_te).shape(), [0]);
    }
}
