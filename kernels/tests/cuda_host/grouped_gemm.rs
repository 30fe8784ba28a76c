//! `grouped_gemm.cu` and `grouped_gemm_hopper.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::{geometry, grouped_gemm};
use wattle_kernels::reference::{self, grouped_matmul, permute};
use wattle_kernels::{bf16, cuda::Launch};

use crate::harness::{
    Argument, Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, indices, unwritten,
    values,
};
use crate::swiglu::KERNELS as SWIGLU;

/// One of the two files with its way of launching.
struct Variant {
    kernels: Kernels,
    name: &'static str,
    launch: fn(u32) -> Launch,
}

static VARIANTS: LazyLock<[Variant; 2]> = LazyLock::new(|| {
    let variant =
        |name: &'static str, launch| Variant { kernels: Kernels::load(&format!("{name}.cu")), name, launch };
    [
        variant("grouped_gemm", grouped_gemm::launch as fn(u32) -> Launch),
        variant("grouped_gemm_hopper", grouped_gemm::launch_hopper),
    ]
});
/// h is computed from gate and up that were rounded: three roundings to bf16, and silu at most 1.1 times as steep.
const SWIGLU_TOLERANCE: f64 = 3.2 * bf16::TOLERANCE;

/// One product: rows of each expert, padding rows behind them, output and input width.
struct Case {
    rows_per_expert: Vec<usize>,
    padding: usize,
    o: usize,
    i: usize,
    /// The rows are gathered from half as many, some of them from none.
    gathered: bool,
    /// Offsets are null: one expert with all rows.
    dense: bool,
    num_multiprocessors: u32,
}

fn cases() -> Vec<Case> {
    let case = |rows: &[usize], padding, [o, i]: [usize; 2], gathered, num_multiprocessors| Case {
        rows_per_expert: rows.to_vec(),
        padding,
        o,
        i,
        gathered,
        dense: false,
        num_multiprocessors,
    };
    vec![
        // Several tiles in both directions; more stages of depth than the pipeline has.
        case(&[130], 0, [144, 136], false, 1),
        // Ragged everywhere, an expert without rows, rows behind the last offset.
        case(&[5, 0, 140], 7, [144, 72], true, 2),
        // More experts than a warp has lanes, and more blocks than tiles.
        case(&[3; 40], 0, [16, 8], true, 30),
        // Each dimension so deep that the pipeline goes round and round.
        case(&[10], 0, [16, 584], false, 1),
        case(&[10], 0, [592, 8], false, 1),
        case(&[610], 0, [16, 16], true, 1),
        // Nobody has rows; there are no rows.
        case(&[0, 0], 9, [16, 200], false, 1),
        case(&[0, 0], 0, [16, 8], false, 1),
        Case { dense: true, ..case(&[150], 0, [128, 64], false, 1) },
        Case { dense: true, ..case(&[200], 0, [48, 40], true, 1) },
    ]
}

/// Every case for either file.
fn everywhere() -> Vec<(&'static Variant, Case)> {
    VARIANTS.iter().flat_map(|variant| cases().into_iter().map(move |case| (variant, case))).collect()
}

impl Case {
    fn offsets(&self) -> Vec<usize> {
        let mut offsets = vec![0];
        for (e, rows) in self.rows_per_expert.iter().enumerate() {
            offsets.push(offsets[e] + rows);
        }
        offsets
    }

    fn num_experts(&self) -> usize {
        self.rows_per_expert.len()
    }

    fn used(&self) -> usize {
        self.rows_per_expert.iter().sum()
    }

    fn num_rows(&self) -> usize {
        self.used() + self.padding
    }

    /// Runs `kernel`, whose name follows the file's.
    #[track_caller]
    fn launch(&self, variant: &Variant, kernel: &str, order: Order, arguments: &[Argument]) {
        let launch = (variant.launch)(self.num_multiprocessors);
        variant.kernels.launch(&format!("{}_{kernel}", variant.name), order, launch, arguments);
    }

    fn shape(&self) -> [usize; 3] {
        [self.num_rows(), self.o, self.i]
    }

    /// An operand with `width` columns, and the rows that the product sees of it.
    fn operand(&self, width: usize, seed: u64) -> Operand {
        let r = self.num_rows();
        if !self.gathered {
            let seen = values(r * width, seed);
            let mut given = seen.clone();
            given[self.used() * width..].fill(f64::NAN);
            return Operand { given: floats(&given), rows: None, seen };
        }
        let given = values(r.div_ceil(2) * width, seed);
        let rows: Vec<i32> = indices(r, r.div_ceil(2) + 1, seed).iter().map(|row| row - 1).collect();
        let seen = permute::gather(&given, &rows, width);
        Operand { given: floats(&given), rows: Some(Buffer::new(&rows)), seen }
    }

    fn offsets_buffer(&self) -> Option<Buffer<i32>> {
        let offsets: Vec<i32> = self.offsets().iter().map(|&offset| offset as i32).collect();
        (!self.dense).then(|| Buffer::new(&offsets))
    }

    /// The counts that end the arguments of every kernel.
    fn counts(&self) -> [Argument; 4] {
        [self.num_rows(), self.num_experts(), self.o, self.i].map(|n| Argument::int(n).unwrap())
    }
}

struct Operand {
    given: Buffer<bf16>,
    rows: Option<Buffer<i32>>,
    seen: Vec<f64>,
}

fn pointer(buffer: &mut Option<Buffer<i32>>) -> Argument {
    buffer.as_mut().map_or(Argument::NULL, Buffer::pointer)
}

/// What the output held before plus what is added to it, where the kernel accumulates.
fn accumulated(before: Option<&[f64]>, want: &[f64]) -> Vec<f64> {
    before.map_or_else(|| want.to_vec(), |before| before.iter().zip(want).map(|(b, w)| b + w).collect())
}

fn output<T: Float>(before: Option<&[f64]>, len: usize) -> Buffer<T> {
    before.map_or_else(|| unwritten(len), floats)
}

/// `kernel` maps `from` columns to `to` with the weights of each row's expert.
fn check_rows<T: Float>(
    variant: &Variant,
    case: &Case,
    kernel: &str,
    [from, to]: [usize; 2],
    accumulate: bool,
    want: impl Fn(&[f64], &[f64]) -> Vec<f64>,
) {
    let w = values(case.num_experts() * case.o * case.i, 2);
    let before = accumulate.then(|| values(case.num_rows() * to, 3));
    let before = before.as_deref();
    let want = accumulated(before, &want(&case.operand(from, 1).seen, &w));
    in_both_orders(|order| {
        let mut x = case.operand(from, 1);
        let (mut w_eoi, mut offsets) = (floats::<bf16>(&w), case.offsets_buffer());
        let mut y = output::<T>(before, case.num_rows() * to);
        let mut arguments = vec![
            y.pointer(),
            x.given.pointer(),
            w_eoi.pointer(),
            pointer(&mut offsets),
            pointer(&mut x.rows),
        ];
        arguments.extend(case.counts());
        arguments.push(Argument::I32(i32::from(accumulate)));
        case.launch(variant, &format!("{kernel}_{}", T::SUFFIX), order, &arguments);
        assert_close(&y, &want, T::TOLERANCE);
        bits(&y)
    });
}

fn check_forward<T: Float>(variant: &Variant, case: &Case, accumulate: bool) {
    check_rows::<T>(variant, case, "forward", [case.i, case.o], accumulate, |x, w| {
        grouped_matmul::forward(x, w, &case.offsets(), case.shape())
    });
}

fn check_input_gradient<T: Float>(variant: &Variant, case: &Case, accumulate: bool) {
    check_rows::<T>(variant, case, "input_gradient", [case.o, case.i], accumulate, |dy, w| {
        grouped_matmul::backward_input(dy, w, &case.offsets(), case.shape())
    });
}

fn check_weight_gradient<T: Float>(variant: &Variant, case: &Case, accumulate: bool) {
    let len = case.num_experts() * case.o * case.i;
    let before = accumulate.then(|| values(len, 3));
    let (dy, x) = (case.operand(case.o, 4).seen, case.operand(case.i, 5).seen);
    let want = grouped_matmul::backward_weight(&dy, &x, &case.offsets(), case.shape());
    let want = accumulated(before.as_deref(), &want);
    in_both_orders(|order| {
        let (mut dy, mut x) = (case.operand(case.o, 4), case.operand(case.i, 5));
        let mut offsets = case.offsets_buffer();
        let mut dw = output::<T>(before.as_deref(), len);
        let mut arguments = vec![dw.pointer(), dy.given.pointer(), x.given.pointer(), pointer(&mut offsets)];
        arguments.extend([pointer(&mut dy.rows), pointer(&mut x.rows)]);
        arguments.extend(case.counts());
        arguments.push(Argument::I32(i32::from(accumulate)));
        let kernel = format!("weight_gradient_{}", T::SUFFIX);
        case.launch(variant, &kernel, order, &arguments);
        assert_close(&dw, &want, T::TOLERANCE);
        bits(&dw)
    });
}

#[test]
fn forward_follows_the_reference_and_padding_comes_out_zero_or_stays() {
    for (variant, case) in everywhere() {
        check_forward::<bf16>(variant, &case, false);
        check_forward::<f32>(variant, &case, true);
    }
}

#[test]
fn input_gradient_follows_the_reference() {
    for (variant, case) in everywhere() {
        check_input_gradient::<bf16>(variant, &case, true);
        check_input_gradient::<f32>(variant, &case, false);
    }
}

#[test]
fn weight_gradient_follows_the_reference_and_without_rows_is_zero_or_stays() {
    for (variant, case) in everywhere() {
        check_weight_gradient::<bf16>(variant, &case, true);
        check_weight_gradient::<f32>(variant, &case, false);
        check_weight_gradient::<f32>(variant, &case, true);
    }
}

/// Tiles are walked in bands of eight: one whole band and a rest, behind an expert of one row.
#[test]
fn experts_higher_than_a_band_of_tiles_follow_the_reference() {
    let case = Case {
        rows_per_expert: vec![1, 1100],
        padding: 1,
        o: 144,
        i: 8,
        gathered: false,
        dense: false,
        num_multiprocessors: 3,
    };
    for variant in VARIANTS.iter() {
        check_forward::<f32>(variant, &case, false);
    }
}

/// (h, gate_up) of one run, `o` being 2·f.
fn swiglu(
    variant: &Variant,
    case: &Case,
    order: Order,
    weights: Option<&[f64]>,
    keep: bool,
) -> (Buffer<bf16>, Buffer<bf16>) {
    let (r, f) = (case.num_rows(), case.o / 2);
    let mut x = case.operand(case.i, 1);
    let mut w = floats::<bf16>(&values(case.num_experts() * case.o * case.i, 2));
    let (mut weights, mut offsets) = (weights.map(floats::<f32>), case.offsets_buffer());
    let (mut h, mut gate_up) = (unwritten::<bf16>(r * f), unwritten::<bf16>(r * case.o));
    let mut arguments = vec![h.pointer(), if keep { gate_up.pointer() } else { Argument::NULL }];
    arguments.extend([x.given.pointer(), w.pointer()]);
    arguments.push(weights.as_mut().map_or(Argument::NULL, Buffer::pointer));
    arguments.extend([pointer(&mut offsets), pointer(&mut x.rows)]);
    arguments.extend([r, case.num_experts(), f, case.i].map(|n| Argument::int(n).unwrap()));
    case.launch(variant, "swiglu", order, &arguments);
    (h, gate_up)
}

#[test]
fn swiglu_follows_the_two_references_in_turn() {
    for (variant, case) in everywhere() {
        let (r, f) = (case.num_rows(), case.o / 2);
        let x = case.operand(case.i, 1).seen;
        let w = values(case.num_experts() * case.o * case.i, 2);
        let weights = values(r, 6);
        // Nobody gave the padding a weight.
        let mut given = weights.clone();
        given[case.used()..].fill(f64::NAN);
        let want_gate_up = grouped_matmul::forward(&x, &w, &case.offsets(), case.shape());
        for weighted in [false, true] {
            let want = reference::swiglu::forward(&want_gate_up, weighted.then_some(&weights), f);
            in_both_orders(|order| {
                let (h, gate_up) = swiglu(variant, &case, order, weighted.then_some(&given), true);
                assert_close(&gate_up, &want_gate_up, bf16::TOLERANCE);
                assert_close(&h, &want, SWIGLU_TOLERANCE);
                (bits(&h), bits(&gate_up))
            });
        }
        let (h, gate_up) = swiglu(variant, &case, Order::Forward, Some(&given), false);
        assert_close(&h, &reference::swiglu::forward(&want_gate_up, Some(&weights), f), SWIGLU_TOLERANCE);
        assert!(gate_up.read().iter().all(|x| x.to_f64().is_nan()), "gate_up was not to be stored");
    }
}

/// The backward computes h again from gate_up: it must see what the forward used.
#[test]
fn swiglu_has_the_bits_of_the_kernel_that_reads_what_it_stored() {
    for (variant, case) in everywhere().into_iter().filter(|(_, case)| case.padding == 0) {
        let (r, f) = (case.num_rows(), case.o / 2);
        let weights = values(r, 6);
        let (h, mut gate_up) = swiglu(variant, &case, Order::Forward, Some(&weights), true);
        let (mut again, mut weights) = (unwritten::<bf16>(r * f), floats::<f32>(&weights));
        let rows = geometry::swiglu(r, f, size_of::<bf16>());
        let arguments = [
            gate_up.pointer(),
            weights.pointer(),
            again.pointer(),
            Argument::long(r),
            Argument::int(f).unwrap(),
            Argument::int(rows.width as usize).unwrap(),
        ];
        if !rows.launch.is_empty() {
            SWIGLU.launch("swiglu_forward_bf16", Order::Forward, rows.launch, &arguments);
        }
        assert!(bits(&h) == bits(&again));
    }
}

#[test]
fn the_number_of_blocks_changes_no_bit() {
    let bits_with = |variant, num_multiprocessors| {
        let case = Case {
            rows_per_expert: vec![140, 0, 3, 130],
            padding: 5,
            o: 272,
            i: 40,
            gathered: false,
            dense: false,
            num_multiprocessors,
        };
        bits(&swiglu(variant, &case, Order::Forward, None, true).0)
    };
    for variant in VARIANTS.iter() {
        let one = bits_with(variant, 1);
        for num_multiprocessors in [2, 5, 40] {
            assert!(bits_with(variant, num_multiprocessors) == one);
        }
    }
}
