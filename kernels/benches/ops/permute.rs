//! Rows by index: the embedding, and the way to the experts and back.

use divan::Bencher;
use wattle_kernels::DType;
use wattle_kernels::ops::{embedding, permute};

use crate::shape::{Case, bytes, cases, integers, normals};

#[divan::bench(args = cases())]
fn gather(bencher: Bencher, case: &Case) {
    let x = case.tensor(&[case.tokens(), case.d_model], 1);
    let rows = integers(&[case.routed_rows()], case.tokens());
    let gathered = permute::gather(&x, &rows).unwrap();
    bencher
        .counter(bytes(&[&gathered, &gathered, &rows]))
        .bench_local(|| permute::gather(&x, &rows).unwrap());
}

#[divan::bench(args = cases())]
fn gather_sum(bencher: Bencher, case: &Case) {
    let y = case.tensor(&[case.routed_rows(), case.d_model], 1);
    let token_rows = integers(&[case.tokens(), case.top_k], case.routed_rows());
    let out = permute::gather_sum(&y, &token_rows).unwrap();
    bencher
        .counter(bytes(&[&y, &out, &token_rows]))
        .bench_local(|| permute::gather_sum(&y, &token_rows).unwrap());
}

#[divan::bench(args = cases())]
fn embedding_forward(bencher: Bencher, case: &Case) {
    let ids = integers(&[case.tokens()], case.vocab);
    let table = case.tensor(&[case.vocab, case.d_model], 1);
    let x = embedding::forward(&ids, &table, case.dtype).unwrap();
    bencher.counter(bytes(&[&x, &x])).bench_local(|| embedding::forward(&ids, &table, case.dtype).unwrap());
}

#[divan::bench(args = cases())]
fn embedding_backward(bencher: Bencher, case: &Case) {
    let ids = integers(&[case.tokens()], case.vocab);
    let dx = case.tensor(&[case.tokens(), case.d_model], 1);
    let mut dtable = normals(&[case.vocab, case.d_model], 2, DType::F32);
    let onto = normals(dx.shape(), 3, DType::F32);
    bencher
        .counter(bytes(&[&dx, &onto, &onto]))
        .bench_local(|| embedding::backward(&dx, &ids, &mut dtable).unwrap());
}
