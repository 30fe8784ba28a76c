//! `attention_D.cu` and `attention_delta.cu`.

use std::sync::LazyLock;

use wattle_kernels::bf16;
use wattle_kernels::cuda::Call;
use wattle_kernels::cuda::calls::attention as calls;
use wattle_kernels::ops::attention::{Mask, Problem};
use wattle_kernels::reference::attention::Attention;

use crate::harness::{
    Argument, Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};

static KERNELS: LazyLock<[(usize, Kernels); 4]> =
    LazyLock::new(|| [32, 64, 96, 128].map(|d| (d, Kernels::load(&format!("attention_{d}.cu")))));
static DELTA: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("attention_delta.cu"));

/// The probabilities are rounded to bf16, to 2^-9 each, and so is the sum.
const FORWARD_TOLERANCE: f64 = 3.0 * bf16::TOLERANCE;
/// So are the gradients of the scores, which are differences, from an o that was rounded already: where a query sees few
/// keys, single terms count.
const BACKWARD_TOLERANCE: f64 = 10.0 * bf16::TOLERANCE;

const CAUSAL: Mask = Mask { causal: true, window: None, num_global_tokens: 0 };
const EVERYTHING: Mask = Mask { causal: false, window: None, num_global_tokens: 0 };

/// A causal head over `n` positions.
fn square(head_dim: usize, n: usize, mask: Mask) -> Attention {
    Attention {
        batch: 1,
        num_queries: n,
        num_keys: n,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim,
        mask,
        scale: 1.0 / (head_dim as f64).sqrt(),
        query_start: 0,
    }
}

/// What the kernels wrote.
struct Results {
    o: Buffer<bf16>,
    lse: Buffer<f32>,
    delta: Buffer<f32>,
    dq: Buffer<bf16>,
    dk: Buffer<bf16>,
    dv: Buffer<bf16>,
}

struct Inputs {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_out: Vec<f64>,
}

impl Inputs {
    fn of(case: &Attention) -> Self {
        let q = case.batch * case.num_queries * case.num_heads * case.head_dim;
        let k = case.batch * case.num_keys * case.num_kv_heads * case.head_dim;
        Inputs { q: values(q, 1), k: values(k, 2), v: values(k, 3), d_out: values(q, 4) }
    }

    fn run(&self, case: &Attention, order: Order) -> Results {
        let problem = problem(case);
        let [mut q, mut k, mut v, mut d_out] =
            [&self.q, &self.k, &self.v, &self.d_out].map(|values| floats::<bf16>(values));
        let (queries, keys) = (self.q.len(), self.k.len());
        let rows = queries / case.head_dim;
        let mut results = Results {
            o: unwritten(queries),
            lse: unwritten(rows),
            delta: unwritten(rows),
            dq: unwritten(queries),
            dk: unwritten(keys),
            dv: unwritten(keys),
        };
        let Results { o, lse, delta, dq, dk, dv } = &mut results;
        let given = calls::Given {
            d_out: d_out.pointer(),
            q: q.pointer(),
            k: k.pointer(),
            v: v.pointer(),
            lse: lse.pointer(),
            delta: delta.pointer(),
        };
        let calls = [
            calls::forward(&problem, [given.q, given.k, given.v], [o.pointer(), given.lse]),
            calls::delta(&problem, [given.d_out, o.pointer()], given.delta),
            calls::backward_queries(&problem, &given, dq.pointer()),
            calls::backward_keys(&problem, &given, [dk.pointer(), dv.pointer()]),
        ];
        for call in calls {
            run(order, &call.unwrap());
        }
        results
    }
}

fn run(order: Order, call: &Call) {
    if call.source == "attention_delta.cu" {
        return DELTA.run(order, call);
    }
    let (_, library) = KERNELS.iter().find(|(d, _)| call.source == format!("attention_{d}.cu")).unwrap();
    library.run(order, call);
}

/// As the op makes it of its tensors.
fn problem(case: &Attention) -> Problem {
    Problem {
        batch: case.batch,
        num_queries: case.num_queries,
        num_keys: case.num_keys,
        num_heads: case.num_heads,
        num_kv_heads: case.num_kv_heads,
        head_dim: case.head_dim,
        mask: case.mask,
        scale: case.scale as f32,
        query_start: case.query_start,
    }
}

/// Forward and backward against the reference, in both orders.
#[track_caller]
fn check(case: &Attention) {
    // The kernels get the scale as f32.
    let case = &Attention { scale: f64::from(case.scale as f32), ..*case };
    let inputs = Inputs::of(case);
    let Inputs { q, k, v, d_out } = &inputs;
    let (want_o, want_lse) = case.forward(q, k, v);
    let (want_dq, want_dk, want_dv) = case.backward(d_out, q, k, v);
    in_both_orders(|order| {
        let results = inputs.run(case, order);
        assert_close(&results.o, &want_o, FORWARD_TOLERANCE);
        assert_lse(&results.lse, &want_lse);
        assert_close(&results.dq, &want_dq, BACKWARD_TOLERANCE);
        assert_close(&results.dk, &want_dk, BACKWARD_TOLERANCE);
        assert_close(&results.dv, &want_dv, BACKWARD_TOLERANCE);
        [bits(&results.o), bits(&results.lse), bits(&results.dq), bits(&results.dk), bits(&results.dv)]
    });
}

/// Minus infinity where nothing is seen, close elsewhere.
#[track_caller]
fn assert_lse(got: &Buffer<f32>, want: &[f64]) {
    for (i, (got, &want)) in got.read().into_iter().zip(want).enumerate() {
        let close = (f64::from(got) - want).abs() <= 1e-5 * want.abs().max(1.0);
        assert!(f64::from(got) == want || close, "row {i}: lse is {got}, want {want}");
    }
}

#[test]
fn every_head_size_follows_the_reference_with_ragged_causal_tiles() {
    for head_dim in [32, 64, 96, 128] {
        check(&square(head_dim, 150, CAUSAL));
    }
}

#[test]
fn heads_share_keys_in_groups_and_batches_lie_apart() {
    for head_dim in [32, 128] {
        let shape = Attention { batch: 2, num_heads: 4, num_kv_heads: 2, ..square(head_dim, 37, CAUSAL) };
        check(&shape);
    }
    check(&Attention { num_heads: 3, ..square(64, 70, EVERYTHING) });
}

#[test]
fn queries_may_stand_anywhere_among_the_keys() {
    for (num_queries, query_start) in [(1, 199), (70, 100), (130, 70)] {
        let case = Attention { num_queries, num_keys: 200, query_start, ..square(64, 0, CAUSAL) };
        check(&case);
        check(&Attention { mask: EVERYTHING, ..case });
    }
}

/// Windows that end on, before and behind the borders of tiles, where whole tiles are skipped or need no mask.
#[test]
fn windows_end_anywhere_within_tiles() {
    for window in [2, 65, 66, 67, 190, 192] {
        let mask = Mask { window: Some(window), ..CAUSAL };
        check(&square(32, 260, mask));
    }
    for window in [34, 160] {
        check(&square(64, 200, Mask { window: Some(window), ..EVERYTHING }));
    }
}

#[test]
fn a_query_that_sees_only_itself_copies_its_value() {
    let case = square(64, 140, Mask { window: Some(1), ..EVERYTHING });
    let inputs = Inputs::of(&case);
    assert_close(&inputs.run(&case, Order::Forward).o, &inputs.v, 0.0);
}

#[test]
fn global_tokens_see_and_are_seen_through_the_window() {
    for num_global_tokens in [1, 70] {
        let mask = Mask { causal: false, window: Some(20), num_global_tokens };
        check(&square(32, 200, mask));
        check(&square(128, 140, Mask { causal: true, ..mask }));
    }
}

#[test]
fn a_query_that_sees_no_key_gives_zeros() {
    let mask = Mask { window: Some(50), ..EVERYTHING };
    // The first 49 queries still see the last keys; the others stand too far behind.
    check(&Attention { num_queries: 140, query_start: 100, ..square(64, 100, mask) });
    check(&Attention { num_keys: 0, ..square(96, 5, EVERYTHING) });
    check(&Attention { num_queries: 0, ..square(96, 70, EVERYTHING) });
}

#[test]
fn any_finite_scale_works() {
    for scale in [-0.2, 0.0, 0.25] {
        check(&Attention { scale, ..square(32, 70, Mask { window: Some(40), ..CAUSAL }) });
    }
}

/// The probability of the largest score is one, whatever its size; nothing overflows on the way.
#[test]
fn large_scores_do_not_overflow() {
    let case = square(32, 130, CAUSAL);
    let mut inputs = Inputs::of(&case);
    inputs.q.iter_mut().for_each(|x| *x *= 64.0);
    inputs.k.iter_mut().for_each(|x| *x *= 64.0);
    let Inputs { q, k, v, d_out } = &inputs;
    let (want_o, want_lse) = case.forward(q, k, v);
    let results = inputs.run(&case, Order::Forward);
    assert_lse(&results.lse, &want_lse);
    assert_close(&results.o, &want_o, FORWARD_TOLERANCE);
    let (_, _, want_dv) = case.backward(d_out, q, k, v);
    assert_close(&results.dv, &want_dv, BACKWARD_TOLERANCE);
    for gradient in [&results.dq, &results.dk] {
        assert!(gradient.read().iter().all(|x| x.to_f64().is_finite()));
    }
}

#[test]
fn delta_is_the_product_of_output_and_gradient_by_row() {
    let case = Attention { batch: 2, num_heads: 3, ..square(96, 11, CAUSAL) };
    let inputs = Inputs::of(&case);
    let results = inputs.run(&case, Order::Forward);
    let o: Vec<f64> = results.o.read().iter().map(|x| x.to_f64()).collect();
    let mut want = vec![0.0; 2 * 3 * 11];
    for (row, (d_out, o)) in inputs.d_out.chunks(96).zip(o.chunks(96)).enumerate() {
        let (b, t, h) = (row / 33, row / 3 % 11, row % 3);
        want[(b * 3 + h) * 11 + t] = d_out.iter().zip(o).map(|(x, y)| x * y).sum();
    }
    assert_close(&results.delta, &want, f32::TOLERANCE);
}

#[test]
fn a_window_of_any_length_sees_everything() {
    let case = square(32, 70, Mask { window: Some(usize::MAX), ..CAUSAL });
    let inputs = Inputs::of(&case);
    let whole = inputs.run(&Attention { mask: CAUSAL, ..case }, Order::Forward);
    assert_eq!(bits(&inputs.run(&case, Order::Forward).o), bits(&whole.o));
}

#[test]
fn what_the_kernels_do_not_serve_is_refused_by_name() {
    let message = |case: Attention| {
        let pointers = [Argument::NULL; 3];
        calls::forward(&problem(&case), pointers, [Argument::NULL; 2]).unwrap_err().to_string()
    };
    for head_dim in [0, 16, 48, 80, 256] {
        assert_eq!(
            message(square(head_dim, 5, CAUSAL)),
            format!(
                "attention: q has shape [1, 5, 1, {head_dim}], expected a head size that a GPU has kernels for: 32, 64, 96 or 128"
            )
        );
    }
    assert_eq!(
        message(Attention { batch: 65_536, ..square(32, 5, CAUSAL) }),
        "attention: the number of sequences is 65536, expected at most 65535 on a GPU"
    );
    // Rows of one sequence are indexed by an int.
    assert_eq!(message(square(128, 1 << 24, CAUSAL)), "cuda: a dimension is 2147483648, expected below 2^31");
}
