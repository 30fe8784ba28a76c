//! Where each token's rows go: a stable counting sort of the assignments by expert.
//!
//! Shapes: indices_tk (i32), weights_tk (f32), r = t·k rows, or e·capacity where that is less. Rows behind the last
//! offset are padding: they belong to no token, are gathered as zeros and multiplied by no expert.
//! On a GPU the indices are not looked at, they come from [`super::router`]; up to 1024 experts there. No count
//! ever goes to the host.
//! Napkin: O(t·k + e); the indices twice and three values a row.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{check, router};
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// The maps between token order and expert order for one micro-batch.
///
/// An assignment is a (token, slot) pair: slot k of token t names the token's k-th expert. Each kept assignment owns
/// one row; rows are sorted by expert and, within an expert, by token. No assignment depends on a later token.
#[derive(Clone, Debug)]
pub struct RoutingPlan {
    /// i32 `[e + 1]`: rows `offsets[e]..offsets[e + 1]` belong to expert e.
    pub offsets_e: Tensor,
    /// i32 `[r]`: the token of each row, -1 behind the last offset.
    pub row_to_token_r: Tensor,
    /// i32 `[t, k]`: the row of each assignment, -1 where it was dropped.
    pub token_to_rows_tk: Tensor,
    /// f32 `[r]`: the routing weight of each row, 0 behind the last offset.
    pub weights_r: Tensor,
    /// i32 `[e]`: how many tokens chose each expert, dropped ones included: the demand that balancing must see.
    pub tokens_per_expert_e: Tensor,
}

/// Sorts the assignments `indices_tk`, experts below `num_experts`, by expert.
///
/// With a `capacity`, assignments are served in the order of tokens, and within a token in the order of its slots, best
/// expert first; one that finds `capacity` rows taken at its expert is dropped.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index that names no expert; more assignments than an i32 can count; out of
/// memory.
pub fn plan(
    indices_tk: &Tensor,
    weights_tk: &Tensor,
    num_experts: usize,
    capacity: Option<usize>,
) -> Result<RoutingPlan> {
    const OP: &str = "routing_plan";
    check::dtype(OP, "indices", indices_tk, DType::I32)?;
    check::rank(OP, "indices", indices_tk, 2)?;
    check::dtype(OP, "weights", weights_tk, DType::F32)?;
    check::shape(OP, "weights", weights_tk, indices_tk.shape())?;
    let num_assignments = indices_tk.num_elements();
    if i32::try_from(num_assignments).is_err() {
        let expected = format!("at most {} assignments; use a smaller micro-batch", i32::MAX);
        return Err(Error::Shape { op: OP, what: "indices", got: indices_tk.shape().to_vec(), expected });
    }
    // No expert is asked for more.
    let capacity = capacity.unwrap_or(num_assignments).min(num_assignments);
    let num_rows = num_assignments.min(num_experts.saturating_mul(capacity));
    let _span = profile::span(OP, DType::I32, || Work::pass(5 * indices_tk.size_in_bytes()));
    let scratch = |shape: &[usize], dtype| Tensor::scratch(shape, dtype, indices_tk.device());
    let mut plan = RoutingPlan {
        offsets_e: scratch(&[num_experts + 1], DType::I32)?,
        row_to_token_r: scratch(&[num_rows], DType::I32)?,
        token_to_rows_tk: scratch(indices_tk.shape(), DType::I32)?,
        weights_r: scratch(&[num_rows], DType::F32)?,
        tokens_per_expert_e: scratch(&[num_experts], DType::I32)?,
    };
    match indices_tk.device() {
        Device::Cpu => {
            router::check_below(OP, "indices", indices_tk, 0, num_experts)?;
            cpu::routing_plan::plan(indices_tk, weights_tk, capacity, &mut plan)?;
        }
        Device::Cuda(_) => cuda::ops::routing_plan::plan(indices_tk, weights_tk, capacity, &mut plan)?,
    }
    Ok(plan)
}

impl RoutingPlan {
    /// How many tokens were routed.
    pub fn num_tokens(&self) -> usize {
        self.token_to_rows_tk.num_rows()
    }

    /// How many rows there are, padding included.
    pub fn num_rows(&self) -> usize {
        self.row_to_token_r.num_elements()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The weight of assignment i is i + 1.
    fn planned(experts: &[i32], k: usize, num_experts: usize, capacity: Option<usize>) -> RoutingPlan {
        let shape = [experts.len() / k, k];
        let weights: Vec<f32> = (1..=experts.len()).map(|weight| weight as f32).collect();
        let indices_tk = Tensor::from_slice(experts, &shape).unwrap();
        let weights_tk = Tensor::from_slice(&weights, &shape).unwrap();
        plan(&indices_tk, &weights_tk, num_experts, capacity).unwrap()
    }

    /// Assignments without a row.
    fn num_dropped(plan: &RoutingPlan) -> usize {
        ints(&plan.token_to_rows_tk).iter().filter(|&&row| row < 0).count()
    }

    fn ints(tensor: &Tensor) -> &[i32] {
        tensor.data().unwrap()
    }

    /// Tokens, slots, experts, a capacity, and distinct experts for each token.
    fn assignments() -> impl Strategy<Value = (Vec<i32>, usize, usize, Option<usize>)> {
        (0..40usize, 1..12usize, proptest::option::of(0..20usize)).prop_flat_map(|(t, e, capacity)| {
            (1..=e).prop_flat_map(move |k| {
                let all: Vec<i32> = (0..e as i32).collect();
                let token = Just(all).prop_shuffle().prop_map(move |experts| experts[..k].to_vec());
                let tokens = proptest::collection::vec(token, t);
                tokens.prop_map(move |tokens| (tokens.concat(), k, e, capacity))
            })
        })
    }

    proptest! {
        #[test]
        fn every_assignment_has_one_row_at_its_expert_or_is_dropped((experts, k, e, capacity) in assignments()) {
            let plan = planned(&experts, k, e, capacity);
            let offsets = ints(&plan.offsets_e);
            let mut seen = vec![0; plan.num_rows()];
            for (assignment, &row) in ints(&plan.token_to_rows_tk).iter().enumerate() {
                if row < 0 {
                    continue;
                }
                seen[row as usize] += 1;
                let expert = experts[assignment] as usize;
                prop_assert!((offsets[expert]..offsets[expert + 1]).contains(&row));
                prop_assert_eq!(plan.weights_r.data::<f32>().unwrap()[row as usize], (assignment + 1) as f32);
                prop_assert_eq!(ints(&plan.row_to_token_r)[row as usize], (assignment / k) as i32);
            }
            let kept = offsets[e] as usize;
            prop_assert_eq!(kept + num_dropped(&plan), experts.len());
            prop_assert!(seen[..kept].iter().all(|&times| times == 1));
            prop_assert!(seen[kept..].iter().all(|&times| times == 0));
            prop_assert!(ints(&plan.row_to_token_r)[kept..].iter().all(|&token| token == -1));
            prop_assert!(plan.weights_r.data::<f32>().unwrap()[kept..].iter().all(|&weight| weight == 0.0));
        }

        #[test]
        fn counts_are_the_demand_and_offsets_the_demand_up_to_capacity((experts, k, e, capacity) in assignments()) {
            let plan = planned(&experts, k, e, capacity);
            for expert in 0..e {
                let demand = experts.iter().filter(|&&other| other == expert as i32).count();
                prop_assert_eq!(ints(&plan.tokens_per_expert_e)[expert] as usize, demand);
                let rows = ints(&plan.offsets_e)[expert + 1] - ints(&plan.offsets_e)[expert];
                prop_assert_eq!(rows as usize, demand.min(capacity.unwrap_or(usize::MAX)));
            }
            prop_assert_eq!(ints(&plan.offsets_e)[0], 0);
        }

        #[test]
        fn rows_of_an_expert_are_in_token_order_and_later_tokens_are_dropped((experts, k, e, capacity) in assignments()) {
            let plan = planned(&experts, k, e, capacity);
            for expert in 0..e {
                let rows = ints(&plan.offsets_e)[expert] as usize..ints(&plan.offsets_e)[expert + 1] as usize;
                let own = (0..experts.len()).filter(|&assignment| experts[assignment] == expert as i32);
                let rows_of_own: Vec<i32> =
                    own.map(|assignment| ints(&plan.token_to_rows_tk)[assignment]).collect();
                let (kept, dropped) = rows_of_own.split_at(rows.len());
                prop_assert!(kept.iter().copied().eq(rows.map(|row| row as i32)));
                prop_assert!(dropped.iter().all(|&row| row == -1));
            }
        }
    }

    #[test]
    fn rows_are_sorted_by_expert_and_then_by_token() {
        // Token 0 chose experts 2 and 0, token 1 experts 0 and 2, token 2 experts 2 and 3; nobody chose 1.
        let plan = planned(&[2, 0, 0, 2, 2, 3], 2, 4, None);
        assert_eq!(ints(&plan.offsets_e), [0, 2, 2, 5, 6]);
        assert_eq!(ints(&plan.row_to_token_r), [0, 1, 0, 1, 2, 2]);
        assert_eq!(plan.weights_r.data::<f32>().unwrap(), [2.0, 3.0, 1.0, 4.0, 5.0, 6.0]);
        assert_eq!(ints(&plan.token_to_rows_tk), [2, 0, 1, 3, 4, 5]);
        assert_eq!(ints(&plan.tokens_per_expert_e), [2, 0, 3, 1]);
        assert_eq!(num_dropped(&plan), 0);
    }

    #[test]
    fn dispatch_drops_only_beyond_capacity() {
        let plan = planned(&[2, 0, 0, 2, 2, 3], 2, 4, Some(2));
        assert_eq!(ints(&plan.offsets_e), [0, 2, 2, 4, 5]);
        assert_eq!(ints(&plan.token_to_rows_tk), [2, 0, 1, 3, -1, 4]);
        assert_eq!(ints(&plan.row_to_token_r), [0, 1, 0, 1, 2, -1]);
        assert_eq!(ints(&plan.tokens_per_expert_e), [2, 0, 3, 1]);
        assert_eq!(num_dropped(&plan), 1);
    }

    #[test]
    fn all_tokens_to_one_expert_and_no_tokens_at_all_both_work() {
        let one = planned(&[1; 5], 1, 3, None);
        assert_eq!(ints(&one.offsets_e), [0, 0, 5, 5]);
        assert_eq!(ints(&one.row_to_token_r), [0, 1, 2, 3, 4]);
        let none = planned(&[], 2, 3, Some(1));
        assert_eq!(ints(&none.offsets_e), [0; 4]);
        assert_eq!((none.num_tokens(), none.num_rows()), (0, 0));
    }

    #[test]
    fn an_index_that_is_no_expert_is_an_error() {
        for bad in [3, -1] {
            let indices_tk = Tensor::from_slice(&[0, bad], &[2, 1]).unwrap();
            let weights_tk = Tensor::zeros(&[2, 1], DType::F32, Device::Cpu).unwrap();
            let error = plan(&indices_tk, &weights_tk, 3, None).unwrap_err().to_string();
            assert_eq!(error, format!("routing_plan: indices is {bad}, expected 0 or more and below 3"));
        }
        let (flat, weights) = (Tensor::from_slice(&[0, 1], &[2]).unwrap(), [0.0f32; 2]);
        assert!(plan(&flat, &Tensor::from_slice(&weights, &[2]).unwrap(), 3, None).is_err());
        let indices_tk = flat.reshape(&[2, 1]).unwrap();
        assert!(plan(&indices_tk, &Tensor::from_slice(&weights, &[1, 2]).unwrap(), 3, None).is_err());
    }
}
