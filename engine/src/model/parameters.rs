//! The parameters of a model: f32 master weights, optional bf16 compute copies, gradients, optimizer moments.

use rayon::prelude::*;
use wattle_kernels::ops::elementwise;
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Device, Result, Tensor};

/// A parameter's place in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(usize);

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All ones: norm weights.
    Ones,
    /// All zeros: biases.
    Zeros,
    /// Normal with this standard deviation, cut at three of them.
    TruncatedNormal(f32),
}

/// One parameter and what training keeps beside it.
#[derive(Debug)]
pub struct Parameter {
    /// Dotted name, as in checkpoints.
    pub name: String,
    /// The weight that the optimizer updates, f32.
    pub master: Tensor,
    /// The bf16 copy that matrix products read, under mixed precision.
    pub compute: Option<Tensor>,
    /// Sum of gradients of the running step, f32; made at its first use.
    pub gradient: Option<Tensor>,
    /// AdamW's running means of the gradient and of its square, f32; made at the first update.
    pub moments: Option<[Tensor; 2]>,
    /// Whether weight decay applies: matrices yes, norms and biases no.
    pub decays: bool,
}

/// All parameters of a model, in a fixed order.
#[derive(Debug, Default)]
pub struct ParameterStore {
    parameters: Vec<Parameter>,
}

impl ParameterStore {
    /// Adds a parameter. Matrices get a bf16 copy when `compute` is bf16; vectors (norms) always compute in f32.
    /// With `seed` none the values stay unspecified, for a loader to fill.
    ///
    /// # Errors
    /// Out of memory.
    pub fn add(
        &mut self,
        name: &str,
        shape: &[usize],
        init: Init,
        compute: DType,
        seed: Option<u64>,
    ) -> Result<ParamId> {
        let id = self.parameters.len();
        let mut master = Tensor::scratch(shape, DType::F32, Device::Cpu)?;
        if let Some(seed) = seed {
            fill(&mut master, init, Philox::new(seed, Purpose::Init, id as u64))?;
        }
        let is_matrix = shape.len() > 1;
        let compute = match compute {
            DType::Bf16 if is_matrix => Some(elementwise::cast(&master, DType::Bf16)?),
            _ => None,
        };
        let name = name.to_owned();
        self.parameters.push(Parameter {
            name,
            master,
            compute,
            gradient: None,
            moments: None,
            decays: is_matrix,
        });
        Ok(ParamId(id))
    }

    /// What the forward and backward products read.
    pub fn compute(&self, id: ParamId) -> &Tensor {
        let parameter = &self.parameters[id.0];
        parameter.compute.as_ref().unwrap_or(&parameter.master)
    }

    /// The f32 weight.
    pub fn master(&self, id: ParamId) -> &Tensor {
        &self.parameters[id.0].master
    }

    /// The f32 weight of that name, to be filled; compute copies follow with
    /// [`ParameterStore::refresh_compute_copies`].
    pub fn master_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        self.parameters
            .iter_mut()
            .find(|parameter| parameter.name == name)
            .map(|parameter| &mut parameter.master)
    }

    /// The f32 weight of that name.
    pub fn master_by_name(&self, name: &str) -> Option<&Tensor> {
        self.parameters.iter().find(|parameter| parameter.name == name).map(|parameter| &parameter.master)
    }

    /// The gradient sum, zero at first.
    ///
    /// # Errors
    /// Out of memory at the first use.
    pub fn gradient_mut(&mut self, id: ParamId) -> Result<&mut Tensor> {
        Ok(self.master_and_gradient(id)?.1)
    }

    /// The f32 weight and its gradient sum.
    ///
    /// # Errors
    /// Out of memory at the first use.
    pub fn master_and_gradient(&mut self, id: ParamId) -> Result<(&Tensor, &mut Tensor)> {
        let parameter = &mut self.parameters[id.0];
        let gradient = match parameter.gradient.take() {
            Some(gradient) => gradient,
            None => Tensor::zeros(parameter.master.shape(), DType::F32, Device::Cpu)?,
        };
        Ok((&parameter.master, parameter.gradient.insert(gradient)))
    }

    /// Takes the gradient sum out, to add to it while the weights are read; give it back with
    /// [`ParameterStore::return_gradient`].
    ///
    /// # Errors
    /// Out of memory at the first use.
    pub fn take_gradient(&mut self, id: ParamId) -> Result<Tensor> {
        let parameter = &mut self.parameters[id.0];
        match parameter.gradient.take() {
            Some(gradient) => Ok(gradient),
            None => Tensor::zeros(parameter.master.shape(), DType::F32, Device::Cpu),
        }
    }

    /// Puts a taken gradient back.
    pub fn return_gradient(&mut self, id: ParamId, gradient: Tensor) {
        self.parameters[id.0].gradient = Some(gradient);
    }

    /// Sets all gradients to zero for the next step.
    ///
    /// # Errors
    /// Out of memory, when a gradient is shared.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.parameters
            .iter_mut()
            .filter_map(|parameter| parameter.gradient.as_mut())
            .try_for_each(Tensor::fill_zero)
    }

    /// Writes the bf16 copies anew after the master weights were changed from outside.
    ///
    /// # Errors
    /// Out of memory, when a copy is shared.
    pub fn refresh_compute_copies(&mut self) -> Result<()> {
        for parameter in &mut self.parameters {
            if let Some(copy) = &mut parameter.compute {
                *copy = elementwise::cast(&parameter.master, DType::Bf16)?;
            }
        }
        Ok(())
    }

    /// All parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter()
    }

    /// All parameters in order, for the optimizer and the loader.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.parameters.iter_mut()
    }

    /// The parameter itself.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Parameter {
        &mut self.parameters[id.0]
    }

    /// How many single weights there are.
    pub fn num_weights(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.master.num_elements()).sum()
    }
}

fn fill(weight: &mut Tensor, init: Init, rng: Philox) -> Result<()> {
    const BLOCK: usize = 1 << 14;
    let values = weight.data_mut::<f32>()?;
    match init {
        Init::Ones => values.fill(1.0),
        Init::Zeros => values.fill(0.0),
        Init::TruncatedNormal(std) => {
            values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
                for (i, four) in values.chunks_mut(4).enumerate() {
                    let index = (block * BLOCK / 4 + i) as u64;
                    four.iter_mut().zip(truncated_normals(&rng, index)).for_each(|(x, z)| *x = std * z);
                }
            });
        }
    }
    Ok(())
}

/// Four standard normal values cut at three standard deviations; a value outside is drawn again from a counter far
/// from all first draws.
fn truncated_normals(rng: &Philox, index: u64) -> [f32; 4] {
    const CUT: f32 = 3.0;
    let mut values = rng.normals(index);
    let mut redraw = index;
    while values.iter().any(|z| z.abs() > CUT) {
        redraw += 1 << 40;
        let fresh = rng.normals(redraw);
        for (z, other) in values.iter_mut().zip(fresh) {
            if z.abs() > CUT {
                *z = other;
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(seed: u64) -> Vec<f32> {
        let mut store = ParameterStore::default();
        let id = store.add("w", &[300, 100], Init::TruncatedNormal(0.02), DType::F32, Some(seed)).unwrap();
        store.master(id).to_f32_vec().unwrap()
    }

    #[test]
    fn initial_weights_are_a_truncated_normal_and_depend_on_the_seed_alone() {
        let values = weights(1);
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let std = (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 5e-4, "mean {mean}");
        // A normal cut at three sigma keeps 0.9866 of its standard deviation.
        assert!((std / 0.02 - 0.9866).abs() < 0.02, "std {std}");
        assert!(values.iter().all(|x| x.abs() <= 0.0601));
        assert_eq!(values, weights(1));
        assert_ne!(values, weights(2));
    }

    #[test]
    fn only_matrices_decay_and_get_a_compute_copy() {
        let mut store = ParameterStore::default();
        store.add("norm", &[8], Init::Ones, DType::Bf16, Some(0)).unwrap();
        store.add("w", &[8, 8], Init::TruncatedNormal(1.0), DType::Bf16, Some(0)).unwrap();
        let kinds: Vec<_> = store.iter().map(|p| (p.decays, p.compute.is_some())).collect();
        assert_eq!(kinds, [(false, false), (true, true)]);
    }
}
