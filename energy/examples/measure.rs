//! Measures a closure: `cargo run --release -p wattle-energy --example measure`.

use wattle_energy::{EnergyConfig, EnergyMonitor};

fn main() -> wattle_energy::Result<()> {
    let monitor = EnergyMonitor::from_config(&EnergyConfig::default())?;
    let (hash, energy) = monitor
        .measure("hash", || (0..300_000_000u64).fold(7, |hash, i| (hash ^ i).wrapping_mul(0x100_0000_01b3)));
    println!("{hash:x}\n{energy}");
    for part in &energy.domains {
        println!("  {:10} {:>8} {}", part.domain, part.microjoules.joules(), part.provenance);
    }
    Ok(())
}
