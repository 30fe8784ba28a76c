//! Routing of a sparse mixture-of-experts layer: scores, expert selection, balance, and the way of each token to its
//! experts and back.
//!
//! [`route()`] turns router logits into weights, a [`RoutingPlan`] and the balance losses; [`experts`] runs the experts
//! over the plan; [`LoadAccumulator`] counts over an optimizer step what the expert bias and [`RoutingStats`] need.
//! All of it runs where the tensors are, and nothing waits for a GPU but [`PendingLosses::read`] and
//! [`LoadAccumulator::read`], which may come a step late.
//!
//! Shape suffixes in names: `t` tokens, `d` model, `f` hidden of an expert, `e` experts, `k` chosen experts, `r` routed
//! rows, `g` groups of tokens that are balanced by themselves.
//!
//! One micro-batch and the end of its optimizer step:
//! ```
//! use wattle_kernels::{DType, Device, Tensor};
//! use wattle_router::{LoadAccumulator, RouterConfig, RoutingStats, experts, route, route_backward};
//!
//! # let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu);
//! # let (t, d, f, e) = (16, 8, 4, 8);
//! # let (x_td, logits_te, dy_td) = (zeros(&[t, d])?, zeros(&[t, e])?, zeros(&[t, d])?);
//! # let (gate_up_e2fd, down_edf) = (zeros(&[e, 2 * f, d])?, zeros(&[e, d, f])?);
//! # let (mut dgate_up_e2fd, mut ddown_edf) = (gate_up_e2fd.clone(), down_edf.clone());
//! # let mut bias_e = zeros(&[e])?;
//! let config = RouterConfig::default();
//! let mut load = LoadAccumulator::new(config.num_experts, Device::Cpu)?;
//! let mut times = experts::ExpertTimes::default();
//!
//! let routing = route(&logits_te, None, &config, 1, Some(&load.load_e()?))?;
//! load.add(&routing)?;
//! let (y_td, saved) = experts::forward(&x_td, &gate_up_e2fd, &down_edf, &routing.plan, &mut times)?;
//!
//! let (dx_td, dweights_r) = experts::backward(
//!     &dy_td, saved, &gate_up_e2fd, &down_edf, &mut dgate_up_e2fd, &mut ddown_edf, &mut times)?;
//! let dlogits_te = route_backward(&routing, &logits_te, &dweights_r, 1.0)?;
//!
//! load.move_bias(&mut bias_e, config.bias_update_rate)?;
//! let stats = RoutingStats::new(&load.take()?.read()?);
//! # assert_eq!((y_td.shape(), dx_td.shape(), dlogits_te.shape()), (&[t, d][..], &[t, d][..], &[t, e][..]));
//! # assert_eq!((stats.dropped_tokens, stats.dead_experts), (0, 6)); // equal scores: ties go to experts 0 and 1
//! # Ok::<(), wattle_router::Error>(())
//! ```

pub mod config;
pub mod error;
pub mod experts;
pub mod load;
#[cfg(test)]
mod reference;
mod route;
pub mod stats;
#[cfg(test)]
mod testing;

pub use config::{BalanceLoss, Problem, RouterConfig, Scoring};
pub use error::{Error, Result};
pub use load::{Load, LoadAccumulator};
pub use route::{PendingLosses, RouterLosses, Routing, route, route_backward};
pub use stats::RoutingStats;
pub use wattle_kernels::ops::routing_plan::RoutingPlan;
