//! The passes of the router against the f64 reference, their gradients and their edges.

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
        let nan_rows: Vec<bool> =
            scores_te.data::<f32>().unwrap().chunks(E).map(|row| row.iter().any(|s| s.is_nan())).collect();
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
