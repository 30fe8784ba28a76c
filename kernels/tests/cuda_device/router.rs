//! The router: choices exactly those of the host, the rest within rounding.

use wattle_kernels::ops::router::{self, Losses, Routed, Rule};
use wattle_kernels::ops::routing_load;
use wattle_kernels::{DType, Device, Tensor};

use crate::{assert_close, gpu_is_here, normal, on_gpu};

/// Tokens, experts and choices: one for each kernel, and ragged ones.
const SHAPES: [[usize; 3]; 5] = [[12, 8, 2], [33, 64, 8], [9, 100, 5], [6, 256, 32], [3, 1024, 4]];

fn rules(top_k: usize) -> [Rule; 4] {
    [(false, false), (true, false), (false, true), (true, true)].map(|(sigmoid, renormalise)| Rule {
        sigmoid,
        renormalise,
        scale: 2.5,
        top_k,
    })
}

fn integers(tensor: &Tensor) -> Vec<i32> {
    tensor.to_device(Device::Cpu).unwrap().data::<i32>().unwrap().to_vec()
}

/// Every assignment its own row, in reverse, every seventh none.
fn rows([t, k]: [usize; 2]) -> Tensor {
    let n = (t * k) as i32;
    let rows: Vec<i32> = (0..n).map(|i| if i % 7 == 6 { -1 } else { n - 1 - i }).collect();
    Tensor::from_slice(&rows, &[t, k]).unwrap()
}

#[test]
fn scores_choices_and_weights_are_those_of_the_host_with_and_without_a_bias() {
    if !gpu_is_here() {
        return;
    }
    for [t, e, k] in SHAPES {
        for rule in rules(k) {
            let logits = normal(&[t, e], DType::F32, 1);
            for bias in [None, Some(normal(&[e], DType::F32, 2))] {
                let want = router::forward(&logits, bias.as_ref(), rule, true).unwrap();
                let bias_there = bias.as_ref().map(on_gpu);
                let got = router::forward(&on_gpu(&logits), bias_there.as_ref(), rule, true).unwrap();
                assert_eq!(integers(&got.indices_tk), integers(&want.indices_tk));
                assert_close(&got.scores_te, &want.scores_te);
                assert_close(&got.weights_tk, &want.weights_tk);
                assert_close(&got.entropy_t, &want.entropy_t);
                assert_close(&got.lse_t.unwrap(), &want.lse_t.unwrap());
            }
        }
    }
}

#[test]
fn ties_and_nan_are_ranked_as_on_the_host() {
    if !gpu_is_here() {
        return;
    }
    let mut logits = vec![0.0f32; 3 * 70];
    for expert in [69, 3, 40, 35] {
        logits[expert] = 2.0;
    }
    logits[70..140].fill(f32::NAN);
    let logits = Tensor::from_slice(&logits, &[3, 70]).unwrap();
    for rule in rules(6) {
        let want = router::forward(&logits, None, rule, false).unwrap();
        let got = router::forward(&on_gpu(&logits), None, rule, false).unwrap();
        assert_eq!(integers(&got.indices_tk), integers(&want.indices_tk));
    }
}

#[test]
fn losses_and_the_gradient_of_the_logits_are_those_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    for [t, e, k] in SHAPES {
        for rule in rules(k) {
            let (logits, dweights, rows) =
                (normal(&[t, e], DType::F32, 1), normal(&[t * k], DType::F32, 2), rows([t, k]));
            let routed = router::forward(&logits, None, rule, true).unwrap();
            let routed_there = Routed {
                scores_te: on_gpu(&routed.scores_te),
                indices_tk: on_gpu(&routed.indices_tk),
                weights_tk: on_gpu(&routed.weights_tk),
                lse_t: routed.lse_t.as_ref().map(on_gpu),
                entropy_t: on_gpu(&routed.entropy_t),
            };
            let load = routing_load::by_group(&routed.indices_tk, 3, e).unwrap();
            let shares = routing_load::shares(&load, None).unwrap();
            let shares_there = on_gpu(&shares);
            for with_losses in [false, true] {
                let losses = |shares, lse| Losses {
                    shares_ge: Some(shares).filter(|_| with_losses),
                    balance_coefficient: 0.75,
                    lse_t: Option::filter(lse, |_| with_losses),
                    z_coefficient: 0.125,
                };
                let here = losses(&shares, routed.lse_t.as_ref());
                let there = losses(&shares_there, routed_there.lse_t.as_ref());
                let want = router::losses(&routed.scores_te, rule, &here).unwrap();
                assert_close(&router::losses(&routed_there.scores_te, rule, &there).unwrap(), &want);
                let want = router::backward(&dweights, &rows, &logits, &routed, rule, &here).unwrap();
                let (dweights, rows, logits) = (on_gpu(&dweights), on_gpu(&rows), on_gpu(&logits));
                let got = router::backward(&dweights, &rows, &logits, &routed_there, rule, &there).unwrap();
                assert_close(&got, &want);
            }
        }
    }
}

#[test]
fn no_tokens_have_no_losses_on_the_device_either() {
    if !gpu_is_here() {
        return;
    }
    let rule = rules(2)[1];
    let logits = on_gpu(&Tensor::zeros(&[0, 8], DType::F32, Device::Cpu).unwrap());
    let routed = router::forward(&logits, None, rule, true).unwrap();
    let shares = on_gpu(&Tensor::zeros(&[1, 8], DType::F32, Device::Cpu).unwrap());
    let losses = Losses {
        shares_ge: Some(&shares),
        balance_coefficient: 1.0,
        lse_t: routed.lse_t.as_ref(),
        z_coefficient: 1.0,
    };
    let losses = router::losses(&routed.scores_te, rule, &losses).unwrap();
    assert_eq!(losses.to_f32_vec().unwrap(), [0.0; 2]);
}
