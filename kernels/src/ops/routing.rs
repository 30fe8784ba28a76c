//! Router scores, expert selection, and the row sums that the router's losses and statistics need. All in f32.
//!
//! Shapes: logits_te, scores_te; bias_e; indices (i32) and weights `[t, k]`; lse_t and entropy_t one value a row.
//! softmax: s = e^x / Σ e^x, dx = s·(ds − Σ ds·s). sigmoid: s = 1 / (1 + e^-x), dx = ds·s·(1 − s).
//! select: w_tk = s[t, i_tk], its backward scatters. logsumexp: l = ln Σ e^x, dx += dl·e^(x − l).
//! NaN in a row stays in that row; it never panics and never touches another token.
//! Napkin: a few passes over t·e values; 4096 tokens and 64 experts are 1 MiB.

use crate::cpu;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;

/// scores_te: the softmax over the last dimension.
///
/// # Errors
/// Logits that are not f32; out of memory.
pub fn softmax(logits_te: &Tensor) -> Result<Tensor> {
    check::dtype("softmax", "logits", logits_te, DType::F32)?;
    let _span = profile::span("softmax", DType::F32, || Work::pass(2 * logits_te.size_in_bytes()));
    let mut scores_te = like(logits_te)?;
    match logits_te.device() {
        Device::Cpu => cpu::routing::softmax(logits_te, &mut scores_te)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: "softmax", device }),
    }
    Ok(scores_te)
}

/// dlogits_te of [`softmax`], from its output.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn softmax_backward(dscores_te: &Tensor, scores_te: &Tensor) -> Result<Tensor> {
    check_gradient("softmax_backward", dscores_te, scores_te)?;
    let _span = profile::span("softmax_backward", DType::F32, || Work::pass(3 * scores_te.size_in_bytes()));
    let mut dlogits_te = like(scores_te)?;
    match scores_te.device() {
        Device::Cpu => cpu::routing::softmax_backward(dscores_te, scores_te, &mut dlogits_te)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: "softmax_backward", device }),
    }
    Ok(dlogits_te)
}

/// scores: the logistic function of each value.
///
/// # Errors
/// Logits that are not f32; out of memory.
pub fn sigmoid(logits_te: &Tensor) -> Result<Tensor> {
    check::dtype("sigmoid", "logits", logits_te, DType::F32)?;
    let _span = profile::span("sigmoid", DType::F32, || Work::pass(2 * logits_te.size_in_bytes()));
    let mut scores_te = like(logits_te)?;
    match logits_te.device() {
        Device::Cpu => cpu::routing::sigmoid(logits_te, &mut scores_te)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: "sigmoid", device }),
    }
    Ok(scores_te)
}

/// dlogits of [`sigmoid`], from its output.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn sigmoid_backward(dscores_te: &Tensor, scores_te: &Tensor) -> Result<Tensor> {
    check_gradient("sigmoid_backward", dscores_te, scores_te)?;
    let _span = profile::span("sigmoid_backward", DType::F32, || Work::pass(3 * scores_te.size_in_bytes()));
    let mut dlogits_te = like(scores_te)?;
    match scores_te.device() {
        Device::Cpu => cpu::routing::sigmoid_backward(dscores_te, scores_te, &mut dlogits_te)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: "sigmoid_backward", device }),
    }
    Ok(dlogits_te)
}

/// indices_tk (i32): the `k` experts of each token with the highest score + bias, best first.
///
/// The bias picks experts and never weights them. Ties go to the lower index; NaN comes after every number.
///
/// # Errors
/// Shapes or dtypes that do not fit; `k` outside 1..=e; out of memory.
pub fn top_k(scores_te: &Tensor, bias_e: Option<&Tensor>, k: usize) -> Result<Tensor> {
    const OP: &str = "top_k";
    check::dtype(OP, "scores", scores_te, DType::F32)?;
    check::rank(OP, "scores", scores_te, 2)?;
    if let Some(bias_e) = bias_e {
        check::dtype(OP, "bias", bias_e, DType::F32)?;
        check::shape(OP, "bias", bias_e, &[scores_te.last_dim()])?;
    }
    if k == 0 || k > scores_te.last_dim() {
        let expected = format!("1 to the {} experts there are", scores_te.last_dim());
        return Err(Error::Value { op: OP, what: "k", got: k.to_string(), expected });
    }
    let indices_bytes = scores_te.num_rows() * k * DType::I32.size_in_bytes();
    let _span = profile::span(OP, DType::F32, || Work::pass(scores_te.size_in_bytes() + indices_bytes));
    let mut indices_tk = Tensor::scratch(&[scores_te.num_rows(), k], DType::I32, scores_te.device())?;
    match scores_te.device() {
        Device::Cpu => cpu::routing::top_k(scores_te, bias_e, &mut indices_tk)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(indices_tk)
}

/// weights_tk = scores[t, indices[t, k]].
///
/// # Errors
/// Shapes or dtypes that do not fit; an index that is no expert; out of memory.
pub fn select(scores_te: &Tensor, indices_tk: &Tensor) -> Result<Tensor> {
    const OP: &str = "select";
    check::dtype(OP, "scores", scores_te, DType::F32)?;
    check::rank(OP, "scores", scores_te, 2)?;
    check_indices(OP, indices_tk, scores_te.num_rows(), scores_te.last_dim())?;
    let _span = profile::span(OP, DType::F32, || Work::pass(3 * indices_tk.size_in_bytes()));
    let mut weights_tk = Tensor::scratch(indices_tk.shape(), DType::F32, scores_te.device())?;
    match scores_te.device() {
        Device::Cpu => cpu::routing::select(scores_te, indices_tk, &mut weights_tk)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(weights_tk)
}

/// dscores_te of [`select`]: dweights at the chosen places, zero elsewhere.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index that is no expert; out of memory.
pub fn select_backward(dweights_tk: &Tensor, indices_tk: &Tensor, num_experts: usize) -> Result<Tensor> {
    const OP: &str = "select_backward";
    check::dtype(OP, "dweights", dweights_tk, DType::F32)?;
    check_indices(OP, indices_tk, dweights_tk.num_rows(), num_experts)?;
    check::shape(OP, "dweights", dweights_tk, indices_tk.shape())?;
    let dscores_bytes = dweights_tk.num_rows() * num_experts * DType::F32.size_in_bytes();
    let bytes = || bytes_of(&[dweights_tk, indices_tk]) + dscores_bytes;
    let _span = profile::span(OP, DType::F32, || Work::pass(bytes()));
    let shape = [dweights_tk.num_rows(), num_experts];
    let mut dscores_te = Tensor::zeros(&shape, DType::F32, dweights_tk.device())?;
    match dweights_tk.device() {
        Device::Cpu => cpu::routing::select_backward(dweights_tk, indices_tk, &mut dscores_te)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(dscores_te)
}

/// lse_t = ln Σ_e e^logits, of each row: what the z-loss squares.
///
/// # Errors
/// Logits that are not an f32 matrix; out of memory.
pub fn logsumexp(logits_te: &Tensor) -> Result<Tensor> {
    const OP: &str = "logsumexp";
    let _span = profile::span(OP, DType::F32, || Work::pass(logits_te.size_in_bytes()));
    check::dtype(OP, "logits", logits_te, DType::F32)?;
    check::rank(OP, "logits", logits_te, 2)?;
    let mut lse_t = Tensor::scratch(&[logits_te.num_rows()], DType::F32, logits_te.device())?;
    match logits_te.device() {
        Device::Cpu => cpu::routing::logsumexp(logits_te, &mut lse_t)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(lse_t)
}

/// dlogits_te += dlse_t·e^(logits − lse), the backward of [`logsumexp`] from its input and output.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn logsumexp_backward(
    dlse_t: &Tensor,
    logits_te: &Tensor,
    lse_t: &Tensor,
    dlogits_te: &mut Tensor,
) -> Result<()> {
    const OP: &str = "logsumexp_backward";
    let _span = profile::span(OP, DType::F32, || Work::pass(3 * logits_te.size_in_bytes()));
    check::dtype(OP, "logits", logits_te, DType::F32)?;
    check::rank(OP, "logits", logits_te, 2)?;
    check_gradient(OP, dlogits_te, logits_te)?;
    for (what, tensor) in [("dlse", dlse_t), ("lse", lse_t)] {
        check::dtype(OP, what, tensor, DType::F32)?;
        check::shape(OP, what, tensor, &[logits_te.num_rows()])?;
    }
    match logits_te.device() {
        Device::Cpu => cpu::routing::logsumexp_backward(dlse_t, logits_te, lse_t, dlogits_te),
        device @ Device::Cuda(_) => Err(Error::Unsupported { op: OP, device }),
    }
}

/// entropy_t = −Σ_e p·ln p in nats, with p = scores / Σ scores, so that it serves softmax and sigmoid alike.
///
/// # Errors
/// Scores that are not an f32 matrix; out of memory.
pub fn entropy(scores_te: &Tensor) -> Result<Tensor> {
    const OP: &str = "entropy";
    let _span = profile::span(OP, DType::F32, || Work::pass(scores_te.size_in_bytes()));
    check::dtype(OP, "scores", scores_te, DType::F32)?;
    check::rank(OP, "scores", scores_te, 2)?;
    let mut entropy_t = Tensor::scratch(&[scores_te.num_rows()], DType::F32, scores_te.device())?;
    match scores_te.device() {
        Device::Cpu => cpu::routing::entropy(scores_te, &mut entropy_t)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(entropy_t)
}

fn like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::scratch(tensor.shape(), tensor.dtype(), tensor.device())
}

fn check_gradient(op: &'static str, gradient: &Tensor, values: &Tensor) -> Result<()> {
    check::dtype(op, "values", values, DType::F32)?;
    check::dtype(op, "gradient", gradient, DType::F32)?;
    check::shape(op, "gradient", gradient, values.shape())
}

fn check_indices(op: &'static str, indices_tk: &Tensor, num_tokens: usize, num_experts: usize) -> Result<()> {
    check::dtype(op, "indices", indices_tk, DType::I32)?;
    check::rank(op, "indices", indices_tk, 2)?;
    check::shape(op, "indices", indices_tk, &[num_tokens, indices_tk.last_dim()])?;
    let is_expert = |index: i32| usize::try_from(index).is_ok_and(|index| index < num_experts);
    match indices_tk.data::<i32>()?.iter().find(|&&index| !is_expert(index)) {
        None => Ok(()),
        Some(index) => Err(Error::Value {
            op,
            what: "indices",
            got: index.to_string(),
            expected: format!("an expert below {num_experts}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::routing as reference;
    use crate::testing::{assert_close, bits, central_difference, dot, in_pools, tensor, values};

    const T: usize = 41;
    const E: usize = 24;
    const K: usize = 5;

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
        assert_close(&softmax(&logits_te).unwrap(), &scores, 2e-6);
        assert_close(&sigmoid(&logits_te).unwrap(), &reference::sigmoid(&x), 1e-6);
        assert_close(&logsumexp(&logits_te).unwrap(), &reference::logsumexp(&x, E), 1e-6);
        assert_close(&entropy(&matrix(&scores, E)).unwrap(), &reference::entropy(&scores, E), 2e-6);
    }

    #[test]
    fn backwards_follow_the_reference() {
        let (x, ds) = (values(T * E, 1), values(T * E, 2));
        let (soft, logistic) = (reference::softmax(&x, E), reference::sigmoid(&x));
        let dscores_te = matrix(&ds, E);
        let got = softmax_backward(&dscores_te, &matrix(&soft, E)).unwrap();
        assert_close(&got, &reference::softmax_backward(&ds, &soft, E), 4e-6);
        let got = sigmoid_backward(&dscores_te, &matrix(&logistic, E)).unwrap();
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
        let lse_t = logsumexp(&logits_te).unwrap();
        logsumexp_backward(&dlse_t, &logits_te, &lse_t, &mut dlogits_te).unwrap();
        let got: Vec<f64> = dlogits_te.to_f32_vec().unwrap().iter().map(|&g| f64::from(g) - 1.0).collect();
        central_difference(|x| dot(&reference::logsumexp(x, E), &dl), &x, &got, 1e-5);
    }

    #[test]
    fn top_k_and_select_follow_the_reference() {
        let (scores, bias) = (values(T * E, 4), values(E, 5));
        let (scores_te, bias_e) = (matrix(&scores, E), tensor(&bias, &[E], DType::F32));
        for k in [1, K, E] {
            for (bias_e, bias) in [(None, &vec![0.0; E]), (Some(&bias_e), &bias)] {
                let indices_tk = top_k(&scores_te, bias_e, k).unwrap();
                let want = reference::top_k(&scores, bias, k);
                assert_eq!(indices_tk.data::<i32>().unwrap(), want);
                let weights_tk = select(&scores_te, &indices_tk).unwrap();
                assert_close(&weights_tk, &reference::select(&scores, &want, E, k), 0.0);
                let dw = values(T * k, 6);
                let got = select_backward(&matrix(&dw, k), &indices_tk, E).unwrap();
                assert_close(&got, &reference::select_backward(&dw, &want, E, k), 0.0);
            }
        }
    }

    #[test]
    fn top_k_gives_ties_to_the_lower_index() {
        let zeros = top_k(&row(&[-0.0, 0.0, -0.0, -1.0]), None, 4).unwrap();
        assert_eq!(zeros.data::<i32>().unwrap(), [0, 1, 2, 3]);
        let indices_tk = top_k(&row(&[1.0, 3.0, 1.0, 3.0, 3.0]), None, 4).unwrap();
        assert_eq!(indices_tk.data::<i32>().unwrap(), [1, 3, 4, 0]);
    }

    #[test]
    fn top_k_puts_nan_after_every_number() {
        let scores_te = row(&[f32::NAN, f32::NEG_INFINITY, -f32::NAN, 0.5]);
        let indices_tk = top_k(&scores_te, None, 4).unwrap();
        assert_eq!(indices_tk.data::<i32>().unwrap(), [3, 1, 0, 2]);
        let bias_e = Tensor::from_slice(&[0.0, 0.0, 0.0, f32::NAN], &[4]).unwrap();
        let indices_tk = top_k(&row(&[1.0, 2.0, 3.0, 4.0]), Some(&bias_e), 2).unwrap();
        assert_eq!(indices_tk.data::<i32>().unwrap(), [2, 1]);
    }

    #[test]
    fn nan_stays_in_its_own_row() {
        let mut x: Vec<f32> = values(3 * E, 7).iter().map(|&x| x as f32).collect();
        x[E + 3] = f32::NAN;
        let logits_te = Tensor::from_slice(&x, &[3, E]).unwrap();
        for scores_te in [softmax(&logits_te).unwrap(), sigmoid(&logits_te).unwrap()] {
            let nan_rows: Vec<bool> = scores_te
                .data::<f32>()
                .unwrap()
                .chunks(E)
                .map(|row| row.iter().any(|s| s.is_nan()))
                .collect();
            assert_eq!(nan_rows, [false, true, false]);
        }
        let lse_t = logsumexp(&logits_te).unwrap();
        assert_eq!(
            lse_t.data::<f32>().unwrap().iter().map(|l| l.is_nan()).collect::<Vec<_>>(),
            [false, true, false]
        );
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let logits_te = row(&[1e4, 1e4, -1e4]);
        assert_eq!(softmax(&logits_te).unwrap().data::<f32>().unwrap(), [0.5, 0.5, 0.0]);
        assert_eq!(sigmoid(&logits_te).unwrap().data::<f32>().unwrap(), [1.0, 1.0, 0.0]);
        let lse = logsumexp(&logits_te).unwrap().data::<f32>().unwrap()[0];
        assert!((lse - 10_000.693).abs() < 2e-3, "{lse}");
    }

    #[test]
    fn entropy_of_one_certain_expert_is_zero_and_of_equal_scores_is_ln_e() {
        let scores_te = Tensor::from_slice(&[0.0f32, 1.0, 0.0, 0.0, 0.9, 0.9, 0.9, 0.9], &[2, 4]).unwrap();
        let entropy_t = entropy(&scores_te).unwrap();
        assert_close(&entropy_t, &[0.0, 4.0f64.ln()], 1e-6);
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        // Enough rows for several blocks.
        let logits_te = matrix(&values(2000 * E, 8), E);
        in_pools(|| {
            let scores_te = softmax(&logits_te).unwrap();
            let indices_tk = top_k(&scores_te, None, K).unwrap();
            let weights_tk = select(&scores_te, &indices_tk).unwrap();
            let dscores_te = select_backward(&weights_tk, &indices_tk, E).unwrap();
            let mut dlogits_te = softmax_backward(&dscores_te, &scores_te).unwrap();
            let lse_t = logsumexp(&logits_te).unwrap();
            logsumexp_backward(&entropy(&scores_te).unwrap(), &logits_te, &lse_t, &mut dlogits_te).unwrap();
            (
                indices_tk.data::<i32>().unwrap().to_vec(),
                bits(&dlogits_te),
                bits(&sigmoid(&logits_te).unwrap()),
            )
        });
    }

    #[test]
    fn no_tokens_give_empty_results() {
        let logits_te = Tensor::zeros(&[0, E], DType::F32, Device::Cpu).unwrap();
        let scores_te = softmax(&logits_te).unwrap();
        let indices_tk = top_k(&scores_te, None, K).unwrap();
        let weights_tk = select(&scores_te, &indices_tk).unwrap();
        assert_eq!(weights_tk.shape(), [0, K]);
        assert_eq!(select_backward(&weights_tk, &indices_tk, E).unwrap().shape(), [0, E]);
        assert_eq!(logsumexp(&logits_te).unwrap().shape(), [0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let scores_te = matrix(&values(2 * 4, 9), 4);
        let bias_e = Tensor::from_slice(&[0.0f32; 3], &[3]).unwrap();
        let bf16 = tensor(&values(4, 1), &[1, 4], DType::Bf16);
        assert!(matches!(top_k(&scores_te, None, 5), Err(Error::Value { what: "k", .. })));
        assert!(matches!(top_k(&scores_te, None, 0), Err(Error::Value { what: "k", .. })));
        assert!(matches!(top_k(&scores_te, Some(&bias_e), 1), Err(Error::Shape { what: "bias", .. })));
        assert!(matches!(softmax(&bf16), Err(Error::DType { what: "logits", .. })));
        assert!(matches!(softmax_backward(&bias_e, &scores_te), Err(Error::Shape { what: "gradient", .. })));
        for bad in [4, -1] {
            let indices_tk = Tensor::from_slice(&[0, bad], &[2, 1]).unwrap();
            assert!(matches!(select(&scores_te, &indices_tk), Err(Error::Value { what: "indices", .. })));
        }
        let indices_tk = Tensor::from_slice(&[0, 1, 2], &[3, 1]).unwrap();
        assert!(matches!(select(&scores_te, &indices_tk), Err(Error::Shape { what: "indices", .. })));
    }
}
