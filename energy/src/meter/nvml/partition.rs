//! The energy of a partitioned board (MIG), of which a process holds slices.

use super::driver::Board;
use crate::meter::apportion::{BoardEnergy, Tenant, apportion};
use crate::units::MicroJoules;

/// Divides a board among the slices that are held.
#[derive(Debug)]
pub(super) struct Partition {
    board_slices: u32,
    tenants: Vec<Tenant>,
    /// All slices of the board are held: what is nobody's is then ours too, in a domain of its own.
    pub(super) with_residual: bool,
    divided: MicroJoules,
    shares: Vec<MicroJoules>,
}

impl Partition {
    /// The slices `held` of a board, by position in its list.
    pub(super) fn new(board: &Board, held: &[usize]) -> Self {
        let tenants: Vec<Tenant> = held
            .iter()
            .map(|slice| Tenant { slices: board.slices[*slice].compute_slices, activity: None })
            .collect();
        let with_residual = held.len() == board.slices.len();
        let shares = vec![MicroJoules(0); held.len() + usize::from(with_residual)];
        let board_slices = board.mig_slices.unwrap_or(0);
        Partition { board_slices, tenants, with_residual, divided: MicroJoules(0), shares }
    }

    /// Divides all energy up to `total`.
    pub(super) fn advance(&mut self, total: MicroJoules) {
        let rise = MicroJoules(total.0 - self.divided.0);
        self.divided = total;
        // NVML tells neither the idle power nor, before Hopper, the activity of a slice: all goes by slices.
        let board = BoardEnergy { total: rise, idle: MicroJoules(0), slices: self.board_slices };
        let divided = apportion(board, &self.tenants);
        // The residual comes last, and is left out where it has no place.
        let parts = divided.tenants.into_iter().chain([divided.residual]);
        for (share, part) in self.shares.iter_mut().zip(parts) {
            *share += part;
        }
    }

    /// The energy of each slice that is held, and of the residual where that is ours.
    pub(super) fn shares(&self) -> impl Iterator<Item = MicroJoules> {
        self.shares.iter().copied()
    }
}
