//! The recorder of operations, alone in its process: it records every call of the process.

use std::time::Duration;

use wattle_kernels::ops::attention::{self, Mask};
use wattle_kernels::ops::{cross_entropy, elementwise, grouped_matmul, matmul};
use wattle_kernels::profile::{self, Entry};
use wattle_kernels::{DType, Device, Tensor};

/// One test, for the recorder is one for the process.
#[test]
fn calls_are_summed_by_operation_and_shape_while_recording_and_not_before_or_after() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu).unwrap();
    let (x, w, of_other_width) = (zeros(&[3, 4, 5]), zeros(&[7, 5]), zeros(&[7, 6]));
    let product = || matmul::forward(&x, &w, DType::F32).unwrap();
    product();
    assert_eq!(profile::stop(), []);

    profile::start();
    product();
    product();
    elementwise::add(&x, &x).unwrap();
    let entries = profile::stop();
    product();
    assert_eq!(profile::stop(), [], "stopped is off");
    let [add, matmul] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((add.op, add.dtype, add.shape.as_slice()), ("add", "f32", &[][..]));
    assert_eq!((add.total.num_calls, add.total.flops, add.total.bytes), (1, 0.0, 3.0 * 60.0 * 4.0));
    assert_eq!((matmul.op, matmul.shape.as_slice()), ("matmul", &[12, 7, 5][..]));
    assert_eq!((matmul.total.num_calls, matmul.total.flops), (2, 2.0 * 2.0 * 12.0 * 7.0 * 5.0));
    assert_eq!(matmul.total.bytes, 2.0 * 4.0 * f64::from(12 * 5 + 7 * 5 + 12 * 7));
    assert!(matmul.total.time > Duration::ZERO);

    // Five rows of which three are padding; a query of three sees itself and what lies before, one of two by window.
    profile::start();
    let offsets = Tensor::from_slice(&[0i32, 1, 2], &[3]).unwrap();
    grouped_matmul::forward(&zeros(&[5, 4]), &zeros(&[2, 6, 4]), &offsets).unwrap();
    let q = zeros(&[2, 3, 4, 8]);
    for window in [None, Some(2)] {
        let mask = Mask { causal: true, window, num_global_tokens: 0 };
        attention::forward(&q, &q, &q, &mask, 1.0, 0).unwrap();
    }
    let entries = profile::stop();
    let flops = |op| entries.iter().find(|entry: &&Entry| entry.op == op).unwrap().total.flops;
    assert_eq!(flops("grouped_matmul"), 2.0 * 2.0 * 6.0 * 4.0);
    assert_eq!(flops("attention"), 4.0 * (2 * 4 * 8 * (6 + 5)) as f64);

    // The head and its loss is made of products: they are part of it.
    let targets = Tensor::from_slice(&[0i32; 12], &[12]).unwrap();
    let mut dw = zeros(&[7, 5]);
    profile::start();
    cross_entropy::forward_backward(&x, &w, &targets, 1.0, &mut dw).unwrap();
    let entries = profile::stop();
    let [head] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((head.op, head.total.flops), ("cross_entropy_backward", 6.0 * 12.0 * 7.0 * 5.0));

    // A refused call is no call.
    profile::start();
    matmul::forward(&x, &of_other_width, DType::F32).unwrap_err();
    assert_eq!(profile::stop(), []);
}
