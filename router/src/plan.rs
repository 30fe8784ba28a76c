//! Where each token's rows go: a stable counting sort of the assignments by expert.

use wattle_kernels::{Error as KernelError, Tensor};

use crate::error::Result;

/// The maps between token order and expert order for one micro-batch.
///
/// An assignment is a (token, slot) pair: slot k of token t names the token's k-th expert. Each kept assignment owns
/// one row; rows are sorted by expert and, within an expert, by token. No assignment depends on a later token.
#[derive(Clone, Debug)]
pub struct RoutingPlan {
    /// i32 `[e + 1]`: rows `offsets[e]..offsets[e + 1]` belong to expert e.
    pub offsets_e: Tensor,
    /// i32 `[r]`: the token of each row.
    pub row_to_token_r: Tensor,
    /// i32 `[r]`: the assignment t·K + k of each row, an index into the weights `[t, k]`.
    pub row_to_assignment_r: Tensor,
    /// i32 `[t, k]`: the row of each assignment, -1 where it was dropped: the inverse of `row_to_assignment_r`.
    pub token_to_rows_tk: Tensor,
    /// How many tokens chose each expert, dropped ones included: the demand that balancing must see.
    pub tokens_per_expert: Vec<u32>,
    /// Assignments without a row.
    pub num_dropped: usize,
}

impl RoutingPlan {
    /// Sorts the assignments `indices_tk` (i32, experts below `num_experts`) by expert in O(t·k + e).
    ///
    /// With a `capacity`, assignments are served in the order of tokens, and within a token in the order of its
    /// slots, best expert first; one that finds `capacity` rows taken at its expert is dropped.
    ///
    /// # Errors
    /// Indices that are not i32 `[t, k]` or name no expert; more assignments than an i32 can count; out of memory.
    pub fn new(indices_tk: &Tensor, num_experts: usize, capacity: Option<usize>) -> Result<Self> {
        let &[num_tokens, k] = indices_tk.shape() else {
            return Err(shape_error(indices_tk, "two dimensions, tokens and slots".into()));
        };
        if i32::try_from(num_tokens * k).is_err() {
            return Err(shape_error(
                indices_tk,
                format!("at most {} assignments; use a smaller micro-batch", i32::MAX),
            ));
        }
        let experts = indices_tk.data::<i32>()?;
        let tokens_per_expert = count(experts, num_experts)?;

        let capacity = capacity.unwrap_or(usize::MAX);
        let mut offsets = vec![0; num_experts + 1];
        for (e, &tokens) in tokens_per_expert.iter().enumerate() {
            offsets[e + 1] = offsets[e] + (tokens as usize).min(capacity);
        }
        let num_rows = offsets[num_experts];

        let mut next_row = offsets.clone();
        let mut row_to_token = vec![0; num_rows];
        let mut row_to_assignment = vec![0; num_rows];
        let mut token_to_rows = vec![-1; experts.len()];
        for (assignment, &expert) in experts.iter().enumerate() {
            let expert = expert as usize;
            let row = next_row[expert];
            if row < offsets[expert + 1] {
                next_row[expert] += 1;
                row_to_token[row] = (assignment / k) as i32;
                row_to_assignment[row] = assignment as i32;
                token_to_rows[assignment] = row as i32;
            }
        }
        let offsets: Vec<i32> = offsets.into_iter().map(|offset| offset as i32).collect();
        Ok(RoutingPlan {
            offsets_e: Tensor::from_slice(&offsets, &[num_experts + 1])?,
            row_to_token_r: Tensor::from_slice(&row_to_token, &[num_rows])?,
            row_to_assignment_r: Tensor::from_slice(&row_to_assignment, &[num_rows])?,
            token_to_rows_tk: Tensor::from_slice(&token_to_rows, &[num_tokens, k])?,
            tokens_per_expert,
            num_dropped: experts.len() - num_rows,
        })
    }

    /// How many tokens were routed.
    pub fn num_tokens(&self) -> usize {
        self.token_to_rows_tk.num_rows()
    }

    /// How many rows the experts compute.
    pub fn num_rows(&self) -> usize {
        self.row_to_token_r.num_elements()
    }
}

fn count(experts: &[i32], num_experts: usize) -> Result<Vec<u32>> {
    let mut counts = vec![0; num_experts];
    for &expert in experts {
        let count = usize::try_from(expert).ok().and_then(|expert| counts.get_mut(expert));
        *count.ok_or_else(|| KernelError::Value {
            op: "routing_plan",
            what: "indices",
            got: expert.to_string(),
            expected: format!("an expert below {num_experts}"),
        })? += 1;
    }
    Ok(counts)
}

fn shape_error(indices_tk: &Tensor, expected: String) -> crate::Error {
    KernelError::Shape { op: "routing_plan", what: "indices", got: indices_tk.shape().to_vec(), expected }
        .into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(experts: &[i32], k: usize, num_experts: usize, capacity: Option<usize>) -> RoutingPlan {
        let indices_tk = Tensor::from_slice(experts, &[experts.len() / k, k]).unwrap();
        RoutingPlan::new(&indices_tk, num_experts, capacity).unwrap()
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
            let plan = plan(&experts, k, e, capacity);
            let offsets = ints(&plan.offsets_e);
            let mut seen = vec![0; plan.num_rows()];
            for (assignment, &row) in ints(&plan.token_to_rows_tk).iter().enumerate() {
                if row < 0 {
                    continue;
                }
                seen[row as usize] += 1;
                let expert = experts[assignment] as usize;
                prop_assert!((offsets[expert]..offsets[expert + 1]).contains(&row));
                prop_assert_eq!(ints(&plan.row_to_assignment_r)[row as usize], assignment as i32);
                prop_assert_eq!(ints(&plan.row_to_token_r)[row as usize], (assignment / k) as i32);
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
            let kept = ints(&plan.token_to_rows_tk).iter().filter(|&&row| row >= 0).count();
            prop_assert_eq!(kept, plan.num_rows());
            prop_assert_eq!(kept + plan.num_dropped, experts.len());
        }

        #[test]
        fn counts_are_the_demand_and_offsets_the_demand_up_to_capacity((experts, k, e, capacity) in assignments()) {
            let plan = plan(&experts, k, e, capacity);
            for expert in 0..e {
                let demand = experts.iter().filter(|&&other| other == expert as i32).count();
                prop_assert_eq!(plan.tokens_per_expert[expert] as usize, demand);
                let rows = ints(&plan.offsets_e)[expert + 1] - ints(&plan.offsets_e)[expert];
                prop_assert_eq!(rows as usize, demand.min(capacity.unwrap_or(usize::MAX)));
            }
            prop_assert_eq!(ints(&plan.offsets_e)[0], 0);
        }

        #[test]
        fn rows_of_an_expert_are_in_token_order_and_later_tokens_are_dropped((experts, k, e, capacity) in assignments()) {
            let plan = plan(&experts, k, e, capacity);
            for expert in 0..e {
                let rows = ints(&plan.offsets_e)[expert] as usize..ints(&plan.offsets_e)[expert + 1] as usize;
                let kept = &ints(&plan.row_to_assignment_r)[rows];
                prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
                let last_kept = kept.last().copied().unwrap_or(-1);
                for (assignment, &row) in ints(&plan.token_to_rows_tk).iter().enumerate() {
                    if row < 0 && experts[assignment] == expert as i32 {
                        prop_assert!(assignment as i32 > last_kept);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_sorted_by_expert_and_then_by_token() {
        // Token 0 chose experts 2 and 0, token 1 experts 0 and 2, token 2 experts 2 and 3; nobody chose 1.
        let plan = plan(&[2, 0, 0, 2, 2, 3], 2, 4, None);
        assert_eq!(ints(&plan.offsets_e), [0, 2, 2, 5, 6]);
        assert_eq!(ints(&plan.row_to_token_r), [0, 1, 0, 1, 2, 2]);
        assert_eq!(ints(&plan.row_to_assignment_r), [1, 2, 0, 3, 4, 5]);
        assert_eq!(ints(&plan.token_to_rows_tk), [2, 0, 1, 3, 4, 5]);
        assert_eq!(plan.tokens_per_expert, [2, 0, 3, 1]);
        assert_eq!(plan.num_dropped, 0);
    }

    #[test]
    fn dispatch_drops_only_beyond_capacity() {
        let plan = plan(&[2, 0, 0, 2, 2, 3], 2, 4, Some(2));
        assert_eq!(ints(&plan.offsets_e), [0, 2, 2, 4, 5]);
        assert_eq!(ints(&plan.token_to_rows_tk), [2, 0, 1, 3, -1, 4]);
        assert_eq!(plan.tokens_per_expert, [2, 0, 3, 1]);
        assert_eq!(plan.num_dropped, 1);
    }

    #[test]
    fn all_tokens_to_one_expert_and_no_tokens_at_all_both_work() {
        let one = plan(&[1; 5], 1, 3, None);
        assert_eq!(ints(&one.offsets_e), [0, 0, 5, 5]);
        assert_eq!(ints(&one.row_to_token_r), [0, 1, 2, 3, 4]);
        let none = plan(&[], 2, 3, Some(1));
        assert_eq!(ints(&none.offsets_e), [0; 4]);
        assert_eq!((none.num_tokens(), none.num_rows(), none.num_dropped), (0, 0, 0));
    }

    #[test]
    fn an_index_that_is_no_expert_is_an_error() {
        for bad in [3, -1] {
            let indices_tk = Tensor::from_slice(&[0, bad], &[2, 1]).unwrap();
            let error = RoutingPlan::new(&indices_tk, 3, None).unwrap_err().to_string();
            assert_eq!(error, format!("routing_plan: indices is {bad}, expected an expert below 3"));
        }
        let flat = Tensor::from_slice(&[0, 1], &[2]).unwrap();
        assert!(RoutingPlan::new(&flat, 3, None).is_err());
    }
}
