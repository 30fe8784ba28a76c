//! Keys and values of the tokens seen so far, so that generating a token costs one token's work.

use wattle_kernels::{DType, Device, Result, Tensor, bf16};

/// The cache of a whole model for one sequence.
#[derive(Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
}

/// One layer's keys and values: `[1, capacity, g, head]`, of which the first `len` positions are filled.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl KvCache {
    /// Room for `capacity` tokens of one sequence.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        num_layers: usize,
        capacity: usize,
        num_kv_heads: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shape = [1, capacity, num_kv_heads, head_dim];
        let layer = || -> Result<LayerCache> {
            Ok(LayerCache {
                keys: Tensor::zeros(&shape, dtype, Device::Cpu)?,
                values: Tensor::zeros(&shape, dtype, Device::Cpu)?,
                len: 0,
            })
        };
        Ok(KvCache { layers: (0..num_layers).map(|_| layer()).collect::<Result<_>>()? })
    }

    /// How many tokens are held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl LayerCache {
    /// Adds new positions and returns all keys and values so far.
    pub(super) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let rows = keys.shape()[1];
        write_rows(&mut self.keys, self.len, keys)?;
        write_rows(&mut self.values, self.len, values)?;
        self.len += rows;
        let shape = [1, self.len, keys.shape()[2], keys.shape()[3]];
        Ok((self.keys.leading(&shape)?, self.values.leading(&shape)?))
    }
}

fn write_rows(into: &mut Tensor, position: usize, rows: &Tensor) -> Result<()> {
    let start = position * into.shape()[2] * into.shape()[3];
    match rows.dtype() {
        DType::Bf16 => {
            let rows = rows.data::<bf16>()?;
            into.data_mut::<bf16>()?[start..start + rows.len()].copy_from_slice(rows);
        }
        _ => {
            let rows = rows.data::<f32>()?;
            into.data_mut::<f32>()?[start..start + rows.len()].copy_from_slice(rows);
        }
    }
    Ok(())
}
