//! AdamW over all parameters in three launches. The norm, the clipping and the decision stay on the device.

use super::Operation;
use crate::cuda::calls::adamw::{self as calls, Parameter, STATE_BYTES};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::adamw::{AdamW, Slot};
use crate::tensor::Tensor;

/// The tables and the state of one set of parameters, kept on their device from step to step.
#[derive(Debug)]
pub(crate) struct Group {
    /// `calls::State`.
    state: Tensor,
    tables: Option<Tables>,
}

/// Where the parameters lie, for the kernels.
#[derive(Debug)]
struct Tables {
    /// What `parameters` holds: as long as it is true nothing is uploaded.
    listed: Vec<Parameter>,
    parameters: Tensor,
    tiles: Tensor,
    num_tiles: usize,
    /// f64, one a tile.
    partials: Tensor,
}

/// The state after one step. The next leaves it alone while it is held.
#[derive(Clone, Debug)]
pub(crate) struct Report(Tensor);

impl Group {
    pub(crate) fn new(device: Device, num_updates: u64) -> Result<Self> {
        let state = Tensor::from_slice(&calls::State::initial_bytes(num_updates), &[STATE_BYTES])?;
        Ok(Group { state: state.to_device(device)?, tables: None })
    }

    pub(crate) fn device(&self) -> Device {
        self.state.device()
    }

    /// Waits for the device.
    pub(crate) fn num_updates(&self) -> Result<u64> {
        Ok(read(&self.state)?.num_updates.unsigned_abs())
    }

    pub(crate) fn step(&mut self, settings: &AdamW, moments: DType, slots: &mut [Slot]) -> Result<Report> {
        let op = Operation::on("adamw", &self.state)?;
        let listed = slots.iter_mut().map(|slot| list(&op, slot)).collect::<Result<Vec<_>>>()?;
        let tables = match self.tables.take() {
            Some(tables) if tables.listed == listed => self.tables.insert(tables),
            _ => self.tables.insert(Tables::upload(listed, self.state.device())?),
        };
        let buffers = calls::Buffers {
            parameters: op.read("parameters", &tables.parameters)?,
            tiles: op.read("tiles", &tables.tiles)?,
            partials: op.write("partials", &mut tables.partials)?,
            state: op.write("state", &mut self.state)?,
        };
        for call in calls::step(&buffers, tables.num_tiles, settings, moments) {
            // SAFETY: the op checked that each parameter's tensors have one shape and the dtypes of the kernels; the
            // table has their addresses, which were just asked for, and the slots hold them; there is a partial a tile.
            unsafe { op.launch(&call) }?;
        }
        Ok(Report(self.state.clone()))
    }
}

impl Report {
    /// Waits for the device.
    pub(crate) fn read(&self) -> Result<calls::State> {
        read(&self.0)
    }
}

impl Tables {
    fn upload(listed: Vec<Parameter>, device: Device) -> Result<Self> {
        let tiles = calls::tiles(listed.iter().map(|parameter| parameter.num_elements as usize));
        let num_tiles = tiles.len();
        let parameters: Vec<u8> = listed.iter().flat_map(|parameter| parameter.to_bytes()).collect();
        let tiles: Vec<u8> = tiles.into_iter().flat_map(calls::Tile::to_bytes).collect();
        let upload = |bytes: &[u8]| Tensor::from_slice(bytes, &[bytes.len()])?.to_device(device);
        let (parameters, tiles) = (upload(&parameters)?, upload(&tiles)?);
        let partials = Tensor::scratch(&[num_tiles * size_of::<f64>()], DType::U8, device)?;
        Ok(Tables { listed, parameters, tiles, num_tiles, partials })
    }
}

fn list(op: &Operation, slot: &mut Slot) -> Result<Parameter> {
    let device = op.gpu.device();
    let write = |what, tensor: &mut Tensor| tensor.device_address_mut(op.name, what, device);
    Ok(Parameter {
        weight: write("weight", slot.weight)?,
        grad: slot.grad.device_address(op.name, "grad", device)?,
        first_moment: write("first_moment", slot.first_moment)?,
        second_moment: write("second_moment", slot.second_moment)?,
        copy: match &mut slot.compute_copy {
            Some(copy) => write("compute_copy", copy)?,
            None => 0,
        },
        num_elements: slot.weight.num_elements() as i64,
        weight_decay: slot.weight_decay,
    })
}

fn read(state: &Tensor) -> Result<calls::State> {
    let there = state.to_device(Device::Cpu)?;
    let mut bytes = [0; STATE_BYTES];
    bytes.copy_from_slice(there.data::<u8>()?);
    Ok(calls::State::from_bytes(&bytes))
}
