//! The energy of a shared GPU among those who share it: slices of a partitioned board (MIG) or processes.
//!
//! Sensors give the whole board only. What it draws idle is divided by the slices each tenant holds, what it draws
//! beyond that by slices times activity. Slices nobody holds, and what rounding leaves, stay in a residual, so that
//! shares and residual are the board's energy to the microjoule. Four slices that each show the whole board would
//! count it four times.

use crate::units::MicroJoules;

/// One who shares the board.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenant {
    /// Compute slices held; for processes that share the whole board, their weight.
    pub slices: u32,
    /// How busy they were, 0 to 1; `None` where the board does not tell (slices before Hopper).
    pub activity: Option<f64>,
}

/// Energy of a board over a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardEnergy {
    /// All of it.
    pub total: MicroJoules,
    /// The part it would have drawn with nothing to do.
    pub idle: MicroJoules,
    /// Slices the board is cut into, held or not.
    pub slices: u32,
}

/// The energy of each tenant and what belongs to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// For each tenant, in the order given.
    pub tenants: Vec<MicroJoules>,
    /// What is nobody's.
    pub residual: MicroJoules,
}

/// Divides the energy of a board. Where the activity of any tenant is unknown, all are taken as equally busy, and
/// the slices nobody holds too: their part goes to the residual.
pub fn apportion(board: BoardEnergy, tenants: &[Tenant]) -> Shares {
    let held: u64 = tenants.iter().map(|tenant| u64::from(tenant.slices)).sum();
    let slices = u64::from(board.slices).max(held);
    let idle = board.idle.min(board.total);
    let active = MicroJoules(board.total.0 - idle.0);
    let activities: Option<Vec<f64>> = tenants.iter().map(|tenant| tenant.activity).collect();
    let (weights, all) = match activities {
        Some(activities) => {
            let weights: Vec<u64> = tenants.iter().zip(activities).map(weight).collect();
            let all = weights.iter().sum();
            (weights, all)
        }
        None => (tenants.iter().map(|tenant| u64::from(tenant.slices)).collect(), slices),
    };
    let share = |(tenant, weight): (&Tenant, u64)| {
        MicroJoules(part(idle, u64::from(tenant.slices), slices) + part(active, weight, all))
    };
    let shares: Vec<MicroJoules> = tenants.iter().zip(weights).map(share).collect();
    let given: MicroJoules = shares.iter().copied().sum();
    Shares { tenants: shares, residual: MicroJoules(board.total.0 - given.0) }
}

/// Slices times activity, in millionths.
fn weight((tenant, activity): (&Tenant, f64)) -> u64 {
    // A NaN becomes 0.
    u64::from(tenant.slices) * (activity.clamp(0.0, 1.0) * 1e6) as u64
}

/// `energy * weight / all`, rounded down, so that parts never exceed the whole; nothing where nobody has a weight.
fn part(energy: MicroJoules, weight: u64, all: u64) -> u64 {
    let part = u128::from(energy.0) * u128::from(weight);
    // At most `energy`, as no weight exceeds their sum.
    part.checked_div(u128::from(all)).map_or(0, |part| part as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn board(total: u64, idle: u64) -> BoardEnergy {
        BoardEnergy { total: MicroJoules(total), idle: MicroJoules(idle), slices: 7 }
    }

    fn tenant(slices: u32, activity: Option<f64>) -> Tenant {
        Tenant { slices, activity }
    }

    #[test]
    fn four_slices_that_are_equally_busy_draw_a_quarter_each_and_not_the_board_each() {
        // 52.6 J, as in the report of four slices that each showed the whole board.
        let board = BoardEnergy { slices: 4, ..board(52_600_000, 20_000_000) };
        let shares = apportion(board, &[tenant(1, Some(0.5)); 4]);
        assert_eq!(shares.tenants, [MicroJoules(13_150_000); 4]);
        assert_eq!(shares.residual, MicroJoules(0));
    }

    #[test]
    fn the_busy_slice_has_the_active_power_and_the_held_slices_their_idle_power() {
        let shares = apportion(board(100_000_000, 70_000_000), &[tenant(3, Some(1.0)), tenant(2, Some(0.0))]);
        assert_eq!(shares.tenants, [MicroJoules(60_000_000), MicroJoules(20_000_000)]);
        assert_eq!(shares.residual, MicroJoules(20_000_000), "two slices that nobody holds");
    }

    #[test]
    fn without_activity_the_slices_decide_and_free_slices_are_residual() {
        let shares = apportion(board(70_000_000, 0), &[tenant(3, None), tenant(1, Some(1.0))]);
        assert_eq!(shares.tenants, [MicroJoules(30_000_000), MicroJoules(10_000_000)]);
        assert_eq!(shares.residual, MicroJoules(30_000_000));
    }

    #[test]
    fn what_a_board_draws_that_nobody_uses_is_residual() {
        assert_eq!(apportion(board(9, 3), &[]).residual, MicroJoules(9));
        let shares = apportion(board(100, 0), &[tenant(7, Some(0.0)), tenant(0, Some(f64::NAN))]);
        assert_eq!((shares.tenants, shares.residual), (vec![MicroJoules(0); 2], MicroJoules(100)));
    }

    proptest! {
        #[test]
        fn shares_and_residual_are_the_board_to_the_microjoule(
            total in 0u64..u64::MAX / 2,
            idle in 0u64..u64::MAX,
            slices in 0u32..9,
            tenants in prop::collection::vec((0u32..8, prop::option::of(-0.5f64..1.5)), 0..9),
        ) {
            let tenants: Vec<Tenant> =
                tenants.into_iter().map(|(slices, activity)| Tenant { slices, activity }).collect();
            let board = BoardEnergy { total: MicroJoules(total), idle: MicroJoules(idle), slices };
            let shares = apportion(board, &tenants);
            let given: u128 = shares.tenants.iter().map(|share| u128::from(share.0)).sum();
            prop_assert_eq!(given + u128::from(shares.residual.0), u128::from(total));
        }
    }
}
