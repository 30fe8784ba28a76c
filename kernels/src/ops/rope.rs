//! Rotary position embedding (Su et al., arXiv:2104.09864), half-split as in GPT-NeoX and Hugging Face Llama.
//!
//! Shapes: x, y, dy, dx `[b, t, h, d]`; the pair (i, i + rotary_dim / 2) of each head turns by the angle
//! position·theta^(-2i / rotary_dim), or by frequencies of the caller's own; elements from rotary_dim on stay. The
//! backward turns by the negative angle.
//! Napkin: 2·b·t·h·rotary_dim elements moved, 3 FLOPs each; memory-bound. Works in place when x is held once.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// y_bthd: x turned; token t stands at position start_position + t.
///
/// # Errors
/// Shapes or dtypes that do not fit; positions beyond the table; out of memory when x is shared.
pub fn forward(x_bthd: Tensor, table: &RopeTable, start_position: usize) -> Result<Tensor> {
    table.rotate("rope", "x", x_bthd, start_position, false)
}

/// dx_bthd: dy turned back.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy_bthd: Tensor, table: &RopeTable, start_position: usize) -> Result<Tensor> {
    table.rotate("rope_backward", "dy", dy_bthd, start_position, true)
}

/// How fast each pair turns: theta^(-2i / rotary_dim), in radians a position.
pub fn frequencies(rotary_dim: usize, theta: f64) -> Vec<f64> {
    (0..rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64)).collect()
}

/// Cosines and sines of every position up to a limit.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// f32 `[max_positions, rotary_dim / 2]`.
    cos: Tensor,
    /// f32 `[max_positions, rotary_dim / 2]`.
    sin: Tensor,
}

impl RopeTable {
    /// The table for positions `0..max_positions`, computed in f64.
    ///
    /// # Errors
    /// An odd `rotary_dim`; a `theta` that is not a positive number; out of memory.
    pub fn new(max_positions: usize, rotary_dim: usize, theta: f64) -> Result<Self> {
        let refuse = |what, got: String, expected: &str| {
            Err(Error::Value { op: "rope_table", what, got, expected: expected.to_owned() })
        };
        if !rotary_dim.is_multiple_of(2) {
            return refuse("rotary_dim", rotary_dim.to_string(), "an even number");
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return refuse("theta", theta.to_string(), "a positive number");
        }
        Self::from_frequencies(max_positions, &frequencies(rotary_dim, theta), 1.0)
    }

    /// The table of a model that stretches its positions: pair i turns by position times its frequency, and what turns is
    /// multiplied by `amplitude` (1 but for YaRN).
    ///
    /// # Errors
    /// Out of memory.
    pub fn from_frequencies(max_positions: usize, frequencies: &[f64], amplitude: f64) -> Result<Self> {
        let shape = [max_positions, frequencies.len()];
        let mut cos = Tensor::scratch(&shape, DType::F32, Device::Cpu)?;
        let mut sin = Tensor::scratch(&shape, DType::F32, Device::Cpu)?;
        let values = cos.data_mut::<f32>()?.iter_mut().zip(sin.data_mut::<f32>()?);
        for (at, (cos, sin)) in values.enumerate() {
            let (position, i) = (at / shape[1], at % shape[1]);
            let angle = position as f64 * frequencies[i];
            (*sin, *cos) = ((amplitude * angle.sin()) as f32, (amplitude * angle.cos()) as f32);
        }
        Ok(RopeTable { cos, sin })
    }

    /// The same table on `device`, where the x that it turns must be.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: Device) -> Result<Self> {
        Ok(RopeTable { cos: self.cos.to_device(device)?, sin: self.sin.to_device(device)? })
    }

    /// The number of positions the table holds.
    pub fn max_positions(&self) -> usize {
        self.cos.shape()[0]
    }

    /// How many elements of each head turn.
    pub fn rotary_dim(&self) -> usize {
        2 * self.cos.shape()[1]
    }

    fn rotate(
        &self,
        op: &'static str,
        what: &'static str,
        mut x_bthd: Tensor,
        start_position: usize,
        back: bool,
    ) -> Result<Tensor> {
        check::float(op, what, &x_bthd)?;
        check::rank(op, what, &x_bthd, 4)?;
        let turned = 2 * x_bthd.num_elements() / x_bthd.last_dim().max(1) * self.rotary_dim();
        let bytes = turned * x_bthd.dtype().size_in_bytes();
        let _span = profile::span(op, x_bthd.dtype(), || Work::pass(bytes));
        if x_bthd.last_dim() < self.rotary_dim() {
            return Err(Error::Shape {
                op,
                what,
                got: x_bthd.shape().to_vec(),
                expected: format!("a last dimension of at least rotary_dim = {}", self.rotary_dim()),
            });
        }
        let num_positions = x_bthd.shape()[1];
        if start_position.saturating_add(num_positions) > self.max_positions() {
            return Err(Error::Value {
                op,
                what: "positions",
                got: format!("{start_position}..{}", start_position.saturating_add(num_positions)),
                expected: format!("within 0..{}, the positions of the table", self.max_positions()),
            });
        }
        let half = self.cos.shape()[1];
        let rows = start_position * half..(start_position + num_positions) * half;
        match x_bthd.device() {
            Device::Cpu => {
                let (cos, sin) = (&self.cos.data()?[rows.clone()], &self.sin.data()?[rows]);
                cpu::rope::rotate(&mut x_bthd, cos, sin, half, back)?;
            }
            Device::Cuda(_) => {
                cuda::ops::rope::rotate(&mut x_bthd, &self.cos, &self.sin, start_position, back)?;
            }
        }
        Ok(x_bthd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const THETA: f64 = 10_000.0;
    const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 1e-6), (DType::Bf16, 1.0 / 128.0)];

    #[test]
    fn forward_and_backward_follow_the_reference() {
        // (shape, rotary_dim, start_position): whole and partial rotation, odd head sizes, more than one block.
        let cases = [
            ([2, 3, 2, 8], 8, 0),
            ([1, 5, 3, 7], 4, 9),
            ([2, 1, 1, 2], 2, 1),
            ([1, 3, 2, 5], 0, 0),
            ([0, 3, 2, 4], 4, 0),
            ([3, 100, 4, 66], 64, 17),
        ];
        for (shape, rotary_dim, start) in cases {
            let n = shape.iter().product();
            let (x, dy) = (values(n, 1), values(n, 2));
            let table = RopeTable::new(128, rotary_dim, THETA).unwrap();
            for (dtype, rel) in TOLERANCES {
                let y = forward(tensor(&x, &shape, dtype), &table, start).unwrap();
                assert_close(&y, &reference::rope::forward(&x, shape, rotary_dim, THETA, start), rel);
                let dx = backward(tensor(&dy, &shape, dtype), &table, start).unwrap();
                assert_close(&dx, &reference::rope::backward(&dy, shape, rotary_dim, THETA, start), rel);
            }
        }
    }

    #[test]
    fn own_frequencies_and_an_amplitude_turn_and_stretch() {
        let table = RopeTable::from_frequencies(4, &[0.5, 0.0], 2.0).unwrap();
        // Position 3: the pair (0, 2) turns by 1.5, the pair (1, 3) by 0; both double.
        let x = Tensor::from_slice(&[1.0f32, 5.0, 0.0, 7.0], &[1, 1, 1, 4]).unwrap();
        let y = forward(x, &table, 3).unwrap();
        let want = [2.0 * 1.5f64.cos(), 10.0, 2.0 * 1.5f64.sin(), 14.0];
        assert_close(&y, &want, 1e-6);
        // The transpose: ⟨y, dy⟩ = ⟨x, dx⟩.
        let dx = backward(y.clone(), &table, 3).unwrap();
        assert_close(&dx, &[4.0, 20.0, 0.0, 28.0], 1e-6);
    }

    #[test]
    fn a_shared_input_stays_as_it_was() {
        let x = tensor(&values(16, 3), &[1, 2, 1, 8], DType::F32);
        let before = bits(&x);
        let y = forward(x.clone(), &RopeTable::new(4, 8, THETA).unwrap(), 1).unwrap();
        assert_eq!(bits(&x), before);
        assert_ne!(bits(&y), before);
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        let table = RopeTable::new(100, 64, THETA).unwrap();
        let x = tensor(&values(3 * 100 * 4 * 66, 4), &[3, 100, 4, 66], DType::F32);
        in_pools(|| bits(&forward(x.clone(), &table, 0).unwrap()));
    }

    #[test]
    fn arguments_that_do_not_fit_are_named() {
        let table_error = |rotary_dim, theta| RopeTable::new(4, rotary_dim, theta).unwrap_err().to_string();
        assert_eq!(table_error(7, THETA), "rope_table: rotary_dim is 7, expected an even number");
        assert_eq!(table_error(8, -1.0), "rope_table: theta is -1, expected a positive number");
        assert!(RopeTable::new(4, 8, f64::NAN).is_err());
        let table = RopeTable::new(4, 8, THETA).unwrap();
        let x = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::Cpu).unwrap();
        let error = |x, start| forward(x, &table, start).unwrap_err().to_string();
        assert_eq!(
            error(x(&[1, 2, 1, 6], DType::F32), 0),
            "rope: x has shape [1, 2, 1, 6], expected a last dimension of at least rotary_dim = 8"
        );
        assert_eq!(
            error(x(&[1, 3, 1, 8], DType::F32), 2),
            "rope: positions is 2..5, expected within 0..4, the positions of the table"
        );
        assert!(forward(x(&[1, 1, 1, 8], DType::F32), &table, usize::MAX).is_err());
        assert!(forward(x(&[1, 3, 1, 8], DType::F32), &table, 1).is_ok());
        assert_eq!(error(x(&[3, 8], DType::F32), 0), "rope: x has shape [3, 8], expected 4 dimensions");
        assert_eq!(error(x(&[1, 1, 1, 8], DType::I32), 0), "rope: x is i32, expected f32 or bf16");
    }
}
