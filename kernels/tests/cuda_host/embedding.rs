//! `embedding.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::embedding as calls;
use wattle_kernels::cuda::geometry::RUN_TILE;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, indices, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("embedding.cu"));

fn look_up<W: Float, X: Float>(ids: &[i32], table: &[f64], d: usize, order: Order) -> Buffer<X> {
    let (t, v) = (ids.len(), table.len() / d);
    let (mut ids, mut table, mut x) = (Buffer::new(ids), floats::<W>(table), unwritten::<X>(t * d));
    let call = calls::forward(ids.pointer(), table.floats(), x.floats(), [t, v, d]).unwrap();
    KERNELS.run(order, &call);
    x
}

fn check_forward<W: Float, X: Float>() {
    for [t, d] in [[0, 8], [50, 6], [40, 64], [3, 1032], [2, 9000]] {
        let v = 11;
        let (ids, table) = (indices(t, v, 1), values(v * d, 2));
        let places: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let want = reference::embedding::forward(&places, &table, d);
        in_both_orders(|order| {
            let x = look_up::<W, X>(&ids, &table, d, order);
            assert_close(&x, &want, 0.0);
            bits(&x)
        });
    }
}

#[test]
fn forward_follows_the_reference_for_every_pair_of_types() {
    check_forward::<f32, f32>();
    check_forward::<f32, bf16>();
    check_forward::<bf16, f32>();
    check_forward::<bf16, bf16>();
}

#[test]
fn an_id_outside_the_vocabulary_gives_nan_and_reads_nothing() {
    let x = look_up::<f32, f32>(&[2, 3, -1, 0], &values(3 * 8, 1), 8, Order::Forward);
    let nan_rows: Vec<bool> = x.read().chunks(8).map(|row| row.iter().all(|x| x.is_nan())).collect();
    assert_eq!(nan_rows, [false, true, true, false]);
}

/// The ids in rising order, and the tokens they belong to.
fn sort(ids: &[i32], v: usize, order: Order) -> [Buffer<i32>; 2] {
    let n = ids.len();
    let mut ids = Buffer::new(ids);
    let mut counts = Buffer::new(&vec![u32::MAX; calls::num_counts(n)]);
    let mut starts = Buffer::new(&[u32::MAX; calls::NUM_DIGITS]);
    let mut pairs = [(); 2].map(|()| [(); 2].map(|()| Buffer::new(&vec![-1; n])));
    let buffers = calls::SortBuffers {
        counts: counts.pointer(),
        starts: starts.pointer(),
        pairs: pairs.each_mut().map(|pair| pair.each_mut().map(Buffer::pointer)),
    };
    let (calls, [sorted_ids, _]) = calls::sort(ids.pointer(), &buffers, [n, v]).unwrap();
    calls.iter().for_each(|call| KERNELS.run(order, call));
    let is_last = |pair: &mut [Buffer<i32>; 2]| pair[0].pointer() == sorted_ids;
    let [mut a, b] = pairs;
    if is_last(&mut a) { a } else { b }
}

#[test]
fn tokens_are_sorted_by_id_and_keep_their_order() {
    for (n, v) in [(0, 5), (1, 1), (3000, 2), (2500, 256), (4500, 50_304), (2100, 1 << 20)] {
        let ids = indices(n, v, 3);
        let mut want: Vec<(i32, i32)> = ids.iter().copied().zip(0..).collect();
        want.sort();
        for order in Order::ALL {
            let [sorted_ids, tokens] = sort(&ids, v, order);
            assert_eq!(sorted_ids.read().into_iter().zip(tokens.read()).collect::<Vec<_>>(), want);
        }
    }
}

fn gradient<T: Float>(
    ids: &[i32],
    dx: &[f64],
    before: &[f64],
    [v, d]: [usize; 2],
    order: Order,
) -> Buffer<f32> {
    let n = ids.len();
    let [mut sorted_ids, mut tokens] = sort(ids, v, order);
    let (mut dx, mut dtable) = (floats::<T>(dx), floats::<f32>(before));
    let mut partials = unwritten::<f32>(calls::num_partials(n) * d);
    let sorted = [sorted_ids.pointer(), tokens.pointer()];
    let sums = calls::sums(dx.floats(), sorted, partials.pointer(), dtable.pointer(), [n, v, d]).unwrap();
    sums.iter().for_each(|call| KERNELS.run(order, call));
    dtable
}

fn check_backward<T: Float>(ids: &[i32], v: usize, d: usize) {
    let (dx, before) = (values(ids.len() * d, 1), values(v * d, 2));
    let places: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    let mut want = reference::embedding::backward(&dx, &places, v, d);
    want.iter_mut().zip(&before).for_each(|(want, before)| *want += before);
    in_both_orders(|order| {
        let dtable = gradient::<T>(ids, &dx, &before, [v, d], order);
        assert_close(&dtable, &want, 4e-6);
        bits(&dtable)
    });
}

#[test]
fn backward_adds_the_gradient_of_each_token_to_its_row() {
    for (n, v, d) in [(0, 7, 8), (1, 7, 8), (200, 9, 6), (130, 300, 64), (64, 64, 520), (700, 40, 12)] {
        check_backward::<f32>(&indices(n, v, 4), v, d);
        check_backward::<bf16>(&indices(n, v, 4), v, d);
    }
}

#[test]
fn runs_of_one_id_may_cross_any_number_of_tiles() {
    // One id everywhere; runs that end at a tile's border, begin there, and fill tiles whole.
    check_backward::<f32>(&[3; 5 * RUN_TILE], 5, 8);
    check_backward::<bf16>(&[3; 5 * RUN_TILE + 1], 5, 8);
    for lengths in
        [[RUN_TILE, RUN_TILE, 1], [RUN_TILE - 1, 2 * RUN_TILE + 2, 3], [10, RUN_TILE, 3 * RUN_TILE - 10]]
    {
        let ids: Vec<i32> = (0..).zip(lengths).flat_map(|(id, len)| vec![id; len]).collect();
        check_backward::<f32>(&ids, 3, 20);
    }
}

#[test]
fn an_id_outside_the_vocabulary_has_no_gradient_and_touches_nothing() {
    let (v, d) = (5, 8);
    let ids = [1, -1, 4, 5, 4, i32::MAX, i32::MIN];
    let dx = values(ids.len() * d, 1);
    let known = [0usize, 2, 4];
    let kept: Vec<f64> = known.iter().flat_map(|&t| &dx[t * d..][..d]).copied().collect();
    let want = reference::embedding::backward(&kept, &[1, 4, 4], v, d);
    for order in Order::ALL {
        assert_close(&gradient::<f32>(&ids, &dx, &vec![0.0; v * d], [v, d], order), &want, 4e-6);
    }
}
