//! `routing_plan.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::routing_plan as calls;
use wattle_kernels::cuda::geometry;

use crate::harness::{Buffer, Kernels, Order, bits, floats, in_both_orders, indices, values};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("routing_plan.cu"));

/// What the plan's kernels write.
#[derive(Debug, PartialEq)]
struct Plan {
    tokens_per_expert: Vec<i32>,
    offsets: Vec<i32>,
    row_to_token: Vec<i32>,
    token_to_rows: Vec<i32>,
    weights: Vec<u64>,
}

/// Assignments of tokens of `k` slots to `e` experts, and how many each expert takes.
struct Assignments {
    experts: Vec<i32>,
    k: usize,
    e: usize,
    capacity: i32,
}

impl Assignments {
    fn weights(&self) -> Vec<f64> {
        values(self.experts.len(), 9)
    }

    fn num_rows(&self) -> usize {
        self.experts.len().min(self.e.saturating_mul(self.capacity as usize))
    }

    fn on_device(&self, order: Order) -> Plan {
        let (n, e, r) = (self.experts.len(), self.e, self.num_rows());
        let sizes = calls::Sizes {
            num_assignments: n,
            top_k: self.k,
            num_experts: e,
            num_rows: r,
            capacity: self.capacity as usize,
        };
        let unset = |len: usize| Buffer::new(&vec![-9i32; len]);
        let (mut indices, mut weights) = (Buffer::new(&self.experts), floats::<f32>(&self.weights()));
        let mut counts = Buffer::new(&vec![u32::MAX; calls::num_counts(&sizes).unwrap()]);
        let (mut tokens, mut offsets) = (unset(e), unset(e + 1));
        let (mut row_to_token, mut token_to_rows) = (unset(r), unset(n));
        let mut weights_r = floats::<f32>(&vec![f64::NAN; r]);
        let buffers = calls::Buffers {
            indices: indices.pointer(),
            weights: weights.pointer(),
            counts: counts.pointer(),
            tokens_per_expert: tokens.pointer(),
            offsets: offsets.pointer(),
            row_to_token: row_to_token.pointer(),
            token_to_rows: token_to_rows.pointer(),
            weights_r: weights_r.pointer(),
        };
        for call in calls::plan(&buffers, &sizes).unwrap() {
            KERNELS.run(order, &call);
        }
        Plan {
            tokens_per_expert: tokens.read(),
            offsets: offsets.read(),
            row_to_token: row_to_token.read(),
            token_to_rows: token_to_rows.read(),
            weights: bits(&weights_r),
        }
    }

    /// The same by plain loops: each expert takes its assignments in order, up to its capacity.
    fn by_loops(&self) -> Plan {
        let (n, r) = (self.experts.len(), self.num_rows());
        let of = |expert: usize| (0..n).filter(move |&i| self.experts[i] == expert as i32);
        let mut plan = Plan {
            tokens_per_expert: (0..self.e).map(|expert| of(expert).count() as i32).collect(),
            offsets: vec![0],
            row_to_token: vec![-1; r],
            token_to_rows: vec![-1; n],
            weights: vec![0f64.to_bits(); r],
        };
        let weights = self.weights();
        let mut row = 0;
        for expert in 0..self.e {
            for assignment in of(expert).take(self.capacity as usize) {
                plan.row_to_token[row] = (assignment / self.k) as i32;
                plan.token_to_rows[assignment] = row as i32;
                plan.weights[row] = weights[assignment].to_bits();
                row += 1;
            }
            plan.offsets.push(row as i32);
        }
        plan
    }

    fn check(&self) {
        let plan = in_both_orders(|order| self.on_device(order));
        assert_eq!(plan, self.by_loops(), "{} assignments to {} experts", self.experts.len(), self.e);
    }
}

#[test]
fn the_plan_is_a_stable_sort_by_expert_with_its_inverse() {
    for (n, k, e) in
        [(0, 2, 4), (2, 2, 3), (96, 8, 5), (2048, 4, 64), (5000, 2, 17), (9000, 1, 1), (4100, 4, 1024)]
    {
        Assignments { experts: indices(n, e, 1), k, e, capacity: i32::MAX }.check();
    }
}

#[test]
fn experts_without_tokens_have_no_rows() {
    for e in [40, 257] {
        let mut experts = indices(3000, 3, 2);
        experts.iter_mut().for_each(|expert| *expert = [7, 38, e - 1][*expert as usize]);
        Assignments { experts, k: 2, e: e as usize, capacity: i32::MAX }.check();
    }
}

#[test]
fn assignments_behind_the_capacity_have_no_row_and_what_is_left_belongs_to_nobody() {
    for capacity in [0, 1, 90, 400] {
        Assignments { experts: indices(5000, 16, 3), k: 2, e: 16, capacity }.check();
    }
}

#[test]
fn counts_of_more_tiles_than_a_warp_has_lanes_add_up() {
    let plan = Assignments { experts: indices(70 * 2048 + 9, 3, 5), k: 1, e: 3, capacity: i32::MAX };
    assert_eq!(plan.on_device(Order::Forward), plan.by_loops());
}

#[test]
fn all_assignments_can_go_to_one_expert() {
    Assignments { experts: vec![2; 7000], k: 1, e: 8, capacity: i32::MAX }.check();
}

#[test]
fn more_experts_than_the_sort_has_bins_are_refused() {
    assert!(geometry::routing_plan(10, 1024).is_some());
    assert!(geometry::routing_plan(10, 1025).is_none());
}
