//! `routing_plan.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::geometry;

use crate::harness::{Argument, Buffer, Kernels, Order, bits, floats, in_both_orders, indices, values};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("routing_plan.cu"));

/// What the plan's kernels write.
#[derive(Debug, PartialEq)]
struct Plan {
    tokens_per_expert: Vec<i32>,
    load: Vec<i32>,
    offsets: Vec<i32>,
    row_to_token: Vec<i32>,
    row_to_assignment: Vec<i32>,
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

    fn on_device(&self, order: Order) -> Plan {
        let (n, e) = (self.experts.len(), self.e);
        let sort = geometry::routing_plan(n, e).unwrap();
        let unset = |len: usize| Buffer::new(&vec![-9i32; len]);
        let (mut indices, mut weights) = (Buffer::new(&self.experts), floats::<f32>(&self.weights()));
        let mut counts = Buffer::new(&vec![u32::MAX; e * sort.num_tiles as usize]);
        let (mut tokens, mut load, mut offsets) = (unset(e), Buffer::new(&vec![5i32; e]), unset(e + 1));
        let (mut row_to_token, mut row_to_assignment, mut token_to_rows) = (unset(n), unset(n), unset(n));
        let mut weights_r = floats::<f32>(&vec![f64::NAN; n]);
        let arguments = [indices.pointer(), counts.pointer(), Argument::long(n), Argument::int(e).unwrap()];
        KERNELS.launch("routing_count", order, sort.count, &arguments);
        let arguments = [
            counts.pointer(),
            tokens.pointer(),
            load.pointer(),
            offsets.pointer(),
            Argument::int(sort.num_tiles as usize).unwrap(),
            Argument::int(e).unwrap(),
            Argument::I32(self.capacity),
        ];
        KERNELS.launch("routing_offsets", order, sort.scan, &arguments);
        let arguments = [
            indices.pointer(),
            counts.pointer(),
            offsets.pointer(),
            weights.pointer(),
            row_to_token.pointer(),
            row_to_assignment.pointer(),
            token_to_rows.pointer(),
            weights_r.pointer(),
            Argument::long(n),
            Argument::int(self.k).unwrap(),
            Argument::int(e).unwrap(),
            Argument::I32(self.capacity),
        ];
        KERNELS.launch("routing_place", order, sort.place, &arguments);
        Plan {
            tokens_per_expert: tokens.read(),
            load: load.read(),
            offsets: offsets.read(),
            row_to_token: row_to_token.read(),
            row_to_assignment: row_to_assignment.read(),
            token_to_rows: token_to_rows.read(),
            weights: bits(&weights_r),
        }
    }

    /// The same by plain loops: each expert takes its assignments in order, up to its capacity.
    fn by_loops(&self) -> Plan {
        let n = self.experts.len();
        let of = |expert: usize| (0..n).filter(move |&i| self.experts[i] == expert as i32);
        let mut plan = Plan {
            tokens_per_expert: (0..self.e).map(|expert| of(expert).count() as i32).collect(),
            load: (0..self.e).map(|expert| 5 + of(expert).count() as i32).collect(),
            offsets: vec![0],
            row_to_token: vec![-1; n],
            row_to_assignment: vec![-1; n],
            token_to_rows: vec![-1; n],
            weights: vec![0f64.to_bits(); n],
        };
        let weights = self.weights();
        let mut row = 0;
        for expert in 0..self.e {
            for assignment in of(expert).take(self.capacity as usize) {
                plan.row_to_token[row] = (assignment / self.k) as i32;
                plan.row_to_assignment[row] = assignment as i32;
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
fn each_group_counts_its_own_load() {
    let (groups, per_group, e) = (3, 700, 40);
    let experts = indices(groups * per_group, e, 4);
    let want: Vec<i32> = experts
        .chunks(per_group)
        .flat_map(|group| (0..e).map(|expert| group.iter().filter(|&&x| x == expert as i32).count() as i32))
        .collect();
    for order in Order::ALL {
        let (mut indices, mut load) = (Buffer::new(&experts), Buffer::new(&vec![-1i32; groups * e]));
        let arguments =
            [indices.pointer(), load.pointer(), Argument::long(per_group), Argument::int(e).unwrap()];
        KERNELS.launch("routing_group_load", order, geometry::routing_group_load(groups), &arguments);
        assert_eq!(load.read(), want);
    }
}

#[test]
fn more_experts_than_the_sort_has_bins_are_refused() {
    assert!(geometry::routing_plan(10, 1024).is_some());
    assert!(geometry::routing_plan(10, 1025).is_none());
}
