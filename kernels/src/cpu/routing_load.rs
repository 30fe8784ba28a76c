//! The load of the experts on the CPU. Sums and means are taken in f64.

use crate::error::Result;
use crate::ops::routing_load::entropy_of;
use crate::ops::routing_plan::RoutingPlan;
use crate::tensor::Tensor;

pub(crate) fn add(plan: &RoutingPlan, entropy_t: &Tensor, sums: &mut Tensor) -> Result<()> {
    let tokens_per_expert = plan.tokens_per_expert_e.data::<i32>()?;
    let (loads, rest) = sums.data_mut::<i32>()?.split_at_mut(tokens_per_expert.len());
    let (computed, entropy) = rest.split_at_mut(tokens_per_expert.len());
    for (load, tokens) in loads.iter_mut().zip(tokens_per_expert) {
        *load += tokens;
    }
    for (computed, rows) in computed.iter_mut().zip(plan.offsets_e.data::<i32>()?.windows(2)) {
        *computed += rows[1] - rows[0];
    }
    let sum = entropy_of(entropy) + entropy_t.data::<f32>()?.iter().copied().map(f64::from).sum::<f64>();
    let bytes = sum.to_ne_bytes();
    for (element, &bytes) in entropy.iter_mut().zip(bytes.as_chunks().0) {
        *element = i32::from_ne_bytes(bytes);
    }
    Ok(())
}

pub(crate) fn by_group(indices_tk: &Tensor, load_ge: &mut Tensor) -> Result<()> {
    let (num_groups, num_experts) = (load_ge.num_rows(), load_ge.last_dim());
    let indices = indices_tk.data::<i32>()?;
    let load_ge = load_ge.data_mut::<i32>()?;
    load_ge.fill(0);
    for (place, &expert) in indices.iter().enumerate() {
        load_ge[place * num_groups / indices.len() * num_experts + expert as usize] += 1;
    }
    Ok(())
}

pub(crate) fn shares(load_ge: &Tensor, earlier_e: Option<&Tensor>, shares_ge: &mut Tensor) -> Result<()> {
    let num_experts = load_ge.last_dim();
    let earlier = match earlier_e {
        Some(earlier_e) => earlier_e.data::<i32>()?.to_vec(),
        None => vec![0; num_experts],
    };
    let loads = load_ge.data::<i32>()?.chunks_exact(num_experts);
    for (loads, shares) in loads.zip(shares_ge.data_mut::<f32>()?.chunks_exact_mut(num_experts)) {
        let loads =
            || loads.iter().zip(&earlier).map(|(&load, &earlier)| f64::from(load) + f64::from(earlier));
        let total: f64 = loads().sum();
        for (share, load) in shares.iter_mut().zip(loads()) {
            *share = if total > 0.0 { (load / total) as f32 } else { 0.0 };
        }
    }
    Ok(())
}

pub(crate) fn update_bias(bias_e: &mut Tensor, load_e: &Tensor, rate: f32) -> Result<()> {
    let loads = load_e.data::<i32>()?;
    let total: f64 = loads.iter().copied().map(f64::from).sum();
    let mean = total / loads.len() as f64;
    for (bias, &load) in bias_e.data_mut::<f32>()?.iter_mut().zip(loads) {
        let load = f64::from(load);
        if load < mean {
            *bias += rate;
        } else if load > mean {
            *bias -= rate;
        }
    }
    Ok(())
}
