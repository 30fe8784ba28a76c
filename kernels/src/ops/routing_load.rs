//! The load of the experts: counted over an optimizer step, shared out for the balance loss, and answered by the bias.
//!
//! Shapes: indices_tk (i32); entropy_t (f32); load_ge and earlier_e (i32); shares_ge and bias_e (f32).
//! f_ge = load_ge / Σ_e load_ge; bias moves by `rate`, up where the load is below the mean and down where it is above.
//! Nothing here waits for a GPU but [`Tally::read`], which may come steps later. Up to 1024 experts there.
//! Napkin: the entropies of the tokens are what there is to read.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::routing_plan::RoutingPlan;
use crate::ops::{check, router};
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// Sums over micro-batches, kept on the device that routed them.
///
/// Every value is a sum, so ranks combine theirs by adding them. Counts are exact below 2^31 for each expert and step.
#[derive(Clone, Debug)]
pub struct Tally {
    /// i32 `[2e + 2]`: assignments per expert, assignments computed per expert, and in two elements an f64, the sum of the
    /// tokens' entropies.
    sums: Tensor,
    num_experts: usize,
}

/// What a [`Tally`] holds, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts {
    /// Assignments per expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Assignments that each expert computed: its load without the dropped ones.
    pub computed_per_expert: Vec<u64>,
    /// The entropy of each token's probabilities over the experts, summed over tokens, in nats.
    pub entropy_nats: f64,
}

impl Tally {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// Out of memory; a device that is not there.
    pub fn new(num_experts: usize, device: Device) -> Result<Self> {
        Ok(Tally { sums: Tensor::zeros(&[2 * num_experts + 2], DType::I32, device)?, num_experts })
    }

    /// Counts one micro-batch: its plan, and the entropy of each token (f32 `[t]`).
    ///
    /// # Errors
    /// Another number of experts; shapes that do not fit; out of memory.
    pub fn add(&mut self, plan: &RoutingPlan, entropy_t: &Tensor) -> Result<()> {
        const OP: &str = "routing_tally";
        check::shape(OP, "tokens_per_expert", &plan.tokens_per_expert_e, &[self.num_experts])?;
        check::shape(OP, "offsets", &plan.offsets_e, &[self.num_experts + 1])?;
        check::dtype(OP, "entropy", entropy_t, DType::F32)?;
        check::rank(OP, "entropy", entropy_t, 1)?;
        let _span = profile::span(OP, DType::F32, || Work::pass(entropy_t.size_in_bytes()));
        match entropy_t.device() {
            Device::Cpu => cpu::routing_load::add(plan, entropy_t, &mut self.sums),
            Device::Cuda(_) => cuda::ops::routing_load::add(plan, entropy_t, &mut self.sums),
        }
    }

    /// i32 `[e]`: assignments per expert so far. Shares the tally's memory.
    ///
    /// # Errors
    /// None that a tally can give.
    pub fn load_e(&self) -> Result<Tensor> {
        self.sums.leading(&[self.num_experts])
    }

    /// How many experts it counts for.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// The sums so far. Waits for a GPU.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read(&self) -> Result<Counts> {
        let sums = self.sums.to_device(Device::Cpu)?;
        let (counts, entropy) = sums.data::<i32>()?.split_at(2 * self.num_experts);
        // A count is never negative.
        let counts: Vec<u64> = counts.iter().map(|&count| count as u64).collect();
        let (tokens, computed) = counts.split_at(self.num_experts);
        Ok(Counts {
            tokens_per_expert: tokens.to_vec(),
            computed_per_expert: computed.to_vec(),
            entropy_nats: entropy_of(entropy),
        })
    }
}

/// The f64 in the two elements behind the counts.
pub(crate) fn entropy_of(elements: &[i32]) -> f64 {
    let mut bytes = [0; 8];
    for (bytes, element) in bytes.chunks_exact_mut(4).zip(elements) {
        bytes.copy_from_slice(&element.to_ne_bytes());
    }
    f64::from_ne_bytes(bytes)
}

/// i32 `[g, e]`: the assignments per expert in each of `num_groups` equal runs of tokens.
///
/// # Errors
/// Shapes or dtypes that do not fit; tokens that do not divide into groups; an index that is no expert; out of memory.
pub fn by_group(indices_tk: &Tensor, num_groups: usize, num_experts: usize) -> Result<Tensor> {
    const OP: &str = "routing_group_load";
    check::dtype(OP, "indices", indices_tk, DType::I32)?;
    check::rank(OP, "indices", indices_tk, 2)?;
    if num_groups == 0 || !indices_tk.num_rows().is_multiple_of(num_groups) {
        let expected = format!("rows that divide into {num_groups} groups");
        return Err(Error::Shape { op: OP, what: "indices", got: indices_tk.shape().to_vec(), expected });
    }
    let _span = profile::span(OP, DType::I32, || Work::pass(indices_tk.size_in_bytes()));
    let mut load_ge = Tensor::scratch(&[num_groups, num_experts], DType::I32, indices_tk.device())?;
    match indices_tk.device() {
        Device::Cpu => {
            router::check_below(OP, "indices", indices_tk, 0, num_experts)?;
            cpu::routing_load::by_group(indices_tk, &mut load_ge)?;
        }
        Device::Cuda(_) => cuda::ops::routing_load::by_group(indices_tk, &mut load_ge)?,
    }
    Ok(load_ge)
}

/// shares_ge: each group's load, with `earlier_e` added to each, over its sum; zeros where the sum is 0.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn shares(load_ge: &Tensor, earlier_e: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "routing_shares";
    check::dtype(OP, "load", load_ge, DType::I32)?;
    check::rank(OP, "load", load_ge, 2)?;
    if let Some(earlier_e) = earlier_e {
        check::dtype(OP, "earlier_load", earlier_e, DType::I32)?;
        check::shape(OP, "earlier_load", earlier_e, &[load_ge.last_dim()])?;
    }
    let _span = profile::span(OP, DType::F32, || Work::pass(2 * load_ge.size_in_bytes()));
    let mut shares_ge = Tensor::scratch(load_ge.shape(), DType::F32, load_ge.device())?;
    match load_ge.device() {
        Device::Cpu => cpu::routing_load::shares(load_ge, earlier_e, &mut shares_ge)?,
        Device::Cuda(_) => cuda::ops::routing_load::shares(load_ge, earlier_e, &mut shares_ge)?,
    }
    Ok(shares_ge)
}

/// Moves each expert's bias by `rate` towards an even load: up where the expert had fewer tokens than the mean, down
/// where it had more, not at all where it had the mean.
/// Source: Wang et al., Auxiliary-Loss-Free Load Balancing (2024).
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory when the bias is shared.
pub fn update_bias(bias_e: &mut Tensor, load_e: &Tensor, rate: f32) -> Result<()> {
    const OP: &str = "routing_update_bias";
    check::dtype(OP, "bias", bias_e, DType::F32)?;
    check::rank(OP, "bias", bias_e, 1)?;
    check::dtype(OP, "load", load_e, DType::I32)?;
    check::shape(OP, "load", load_e, bias_e.shape())?;
    let _span = profile::span(OP, DType::F32, || Work::pass(bytes_of(&[&*bias_e, &*bias_e, load_e])));
    match bias_e.device() {
        Device::Cpu => cpu::routing_load::update_bias(bias_e, load_e, rate),
        Device::Cuda(_) => cuda::ops::routing_load::update_bias(bias_e, load_e, rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(values: &[i32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape).unwrap()
    }

    #[test]
    fn the_bias_moves_against_the_load_by_the_rate() {
        let mut bias_e = Tensor::from_slice(&[0.0f32, 0.5, -0.5, 0.0], &[4]).unwrap();
        update_bias(&mut bias_e, &ints(&[1, 9, 2, 4], &[4]), 0.001).unwrap();
        assert_eq!(bias_e.data::<f32>().unwrap(), [0.001, 0.499, -0.499, 0.0]);
    }

    #[test]
    fn an_even_load_and_a_rate_of_zero_leave_the_bias_alone() {
        let mut bias_e = Tensor::from_slice(&[0.25f32, -0.25, 0.0], &[3]).unwrap();
        update_bias(&mut bias_e, &ints(&[7; 3], &[3]), 0.1).unwrap();
        update_bias(&mut bias_e, &ints(&[0, 0, 9], &[3]), 0.0).unwrap();
        assert_eq!(bias_e.data::<f32>().unwrap(), [0.25, -0.25, 0.0]);
    }

    #[test]
    fn a_load_of_another_length_is_an_error() {
        let mut bias_e = Tensor::zeros(&[2], DType::F32, Device::Cpu).unwrap();
        let error = update_bias(&mut bias_e, &ints(&[1; 3], &[3]), 0.1).unwrap_err().to_string();
        assert_eq!(error, "routing_update_bias: load has shape [3], expected [2]");
    }

    #[test]
    fn shares_sum_to_one_in_each_group_that_has_any() {
        let load_ge = by_group(&ints(&[0, 1, 0, 2, 2, 1, 2, 0], &[8, 1]), 2, 3).unwrap();
        assert_eq!(load_ge.data::<i32>().unwrap(), [2, 1, 1, 1, 1, 2]);
        let of =
            |load: &Tensor, earlier: Option<&Tensor>| shares(load, earlier).unwrap().to_f32_vec().unwrap();
        assert_eq!(of(&load_ge, None), [0.5, 0.25, 0.25, 0.25, 0.25, 0.5]);
        assert_eq!(of(&load_ge, Some(&ints(&[4, 0, 0], &[3])))[..3], [0.75, 0.125, 0.125]);
        let empty = by_group(&ints(&[], &[0, 1]), 2, 3).unwrap();
        assert_eq!(of(&empty, None), [0.0; 6]);
    }

    #[test]
    fn what_does_not_divide_into_groups_is_an_error() {
        let indices_tk = ints(&[0, 1, 0], &[3, 1]);
        assert!(by_group(&indices_tk, 2, 3).is_err());
        assert!(by_group(&indices_tk, 0, 3).is_err());
        assert!(by_group(&indices_tk, 1, 1).is_err());
    }
}
