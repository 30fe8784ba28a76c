//! The rules, over one row: named numbers, some of them unknown.

/// Part by which two ways to the same number may differ: sampled powers are means of few samples.
const SAMPLING: f64 = 0.25;

/// Part by which a number may differ from an exact computation of it: printed digits.
const ROUNDING: f64 = 0.01;

/// Kilowatt-hours below which a difference says nothing.
const NEGLIGIBLE_KWH: f64 = 1e-7;

/// The most that electricity emits anywhere, with room: g/kWh.
const MAX_INTENSITY: f64 = 2000.0;

/// Half of 85 W, what CodeCarbon takes for a processor it does not know.
const CONSTANT_CPU_WATTS: f64 = 42.5;

/// The IEA's world average of 2018 and 2019, in g/kWh.
const OLD_WORLD_AVERAGE: f64 = 475.0;

/// The highest PUE to be reckoned with where a row tells none.
const UNTOLD_PUE: f64 = 2.0;

/// Numbers of one row.
pub(super) struct Row<'a> {
    /// A column's number; `None` when it is empty or not there.
    pub(super) get: &'a dyn Fn(&str) -> Option<f64>,
    /// ISO code of the country, if told.
    pub(super) country: &'a str,
}

/// Columns that contradict each other, and why.
pub(super) type Contradiction = (Vec<&'static str>, String);

impl Row<'_> {
    /// Everything in the row that cannot be true.
    pub(super) fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = Vec::new();
        self.durations(&mut found);
        self.signs(&mut found);
        self.powers(&mut found);
        self.sum(&mut found);
        self.constants(&mut found);
        self.memory(&mut found);
        self.emissions(&mut found);
        found
    }

    fn durations(&self, found: &mut Vec<Contradiction>) {
        if (self.get)("duration").is_some_and(|seconds| seconds < 0.0) {
            found.push((vec!["duration"], "no run takes less than no time".into()));
        }
        if let (Some(rate), Some(seconds), Some(kg)) =
            ((self.get)("emissions_rate"), (self.get)("duration"), (self.get)("emissions"))
            && seconds > 0.0
            && kg > 0.0
            && differs(rate * seconds, kg, ROUNDING)
        {
            found.push((
                vec!["emissions_rate", "duration", "emissions"],
                format!("the rate times the duration is {:.4e} kg, not {kg:.4e}", rate * seconds),
            ));
        }
    }

    fn signs(&self, found: &mut Vec<Contradiction>) {
        let runs = (self.get)("duration").is_some_and(|seconds| seconds > 0.0);
        for name in
            ["energy_consumed", "cpu_energy", "gpu_energy", "ram_energy", "emissions", "water_consumed"]
        {
            if (self.get)(name).is_some_and(|value| value < 0.0) {
                found.push((
                    vec![name, "duration"],
                    "it is negative: a counter was read across a reset".into(),
                ));
            }
        }
        if runs && (self.get)("energy_consumed") == Some(0.0) {
            let reason = "time passed and no energy did: a reading that failed is not a reading of zero";
            found.push((vec!["energy_consumed", "duration"], reason.into()));
        }
        let has_gpu = (self.get)("gpu_count").is_some_and(|count| count > 0.0);
        if runs && has_gpu && (self.get)("gpu_energy") == Some(0.0) {
            let reason = "there is a GPU and it drew nothing: a reading that failed is not a reading of zero";
            found.push((vec!["gpu_energy", "gpu_count", "duration"], reason.into()));
        }
    }

    /// Energy is power times time, and once the PUE.
    fn powers(&self, found: &mut Vec<Contradiction>) {
        let told_pue = (self.get)("pue").filter(|pue| *pue >= 1.0);
        for (power, energy) in
            [("cpu_power", "cpu_energy"), ("gpu_power", "gpu_energy"), ("ram_power", "ram_energy")]
        {
            let (Some(watts), Some(seconds), Some(kwh)) =
                ((self.get)(power), (self.get)("duration"), (self.get)(energy))
            else {
                continue;
            };
            let expected = watts * seconds / 3.6e6;
            if seconds <= 0.0 || watts < 0.0 || kwh < 0.0 || (kwh - expected).abs() < NEGLIGIBLE_KWH {
                continue;
            }
            let most = told_pue.unwrap_or(UNTOLD_PUE);
            let ratio = kwh / expected;
            let mut columns = vec![power, "duration", energy];
            columns.extend(told_pue.map(|_| "pue"));
            if told_pue.is_some_and(|pue| is_twice(ratio, pue)) {
                let reason =
                    format!("the energy is {ratio:.3} times power times time: the PUE is in it twice");
                found.push((columns, reason));
            } else if ratio < 1.0 - SAMPLING || ratio > most * (1.0 + SAMPLING) {
                let reason = format!(
                    "power times time is {expected:.4e} kWh, and a PUE of {most} does not explain {kwh:.4e}"
                );
                found.push((columns, reason));
            }
        }
    }

    /// The whole is the sum of its parts.
    fn sum(&self, found: &mut Vec<Contradiction>) {
        let parts = ["cpu_energy", "gpu_energy", "ram_energy"];
        let Some(whole) = (self.get)("energy_consumed").filter(|kwh| *kwh > 0.0) else { return };
        let known: Vec<_> = parts.into_iter().filter(|name| (self.get)(name).is_some()).collect();
        let sum: f64 = known.iter().filter_map(|name| (self.get)(name)).sum();
        // Parts may be unknown; more than all of it they cannot be.
        let all_known = known.len() == parts.len();
        if sum <= 0.0 || !differs(sum, whole, ROUNDING) || (whole > sum && !all_known) {
            return;
        }
        let columns = || [&["energy_consumed"][..], &known].concat();
        match (self.get)("pue").filter(|pue| *pue > 1.0 + 2.0 * ROUNDING) {
            Some(pue) if !differs(whole, sum * pue, ROUNDING) => {
                let reason = format!("the whole is {pue} times its parts: the PUE is in it twice");
                found.push(([columns(), vec!["pue"]].concat(), reason));
            }
            _ => found.push((columns(), format!("its parts add up to {sum:.4e} kWh"))),
        }
    }

    fn constants(&self, found: &mut Vec<Contradiction>) {
        if (self.get)("cpu_power").is_some_and(|watts| (watts - CONSTANT_CPU_WATTS).abs() < 1e-6) {
            let reason = "half of 85 W, the constant for a processor that is not known: nothing was measured";
            found.push((vec!["cpu_power"], reason.into()));
        }
    }

    /// Memory is modelled from its size, and a shared host has more of it than a job uses.
    fn memory(&self, found: &mut Vec<Contradiction>) {
        for (memory, gpu) in [("ram_power", "gpu_power"), ("ram_energy", "gpu_energy")] {
            if let (Some(of_memory), Some(of_gpu)) = ((self.get)(memory), (self.get)(gpu))
                && of_gpu > 0.0
                && of_memory > of_gpu
            {
                let reason = "memory drew more than the GPU: it is modelled from all the host has, not from what the job used";
                found.push((vec![memory, gpu], reason.into()));
                return;
            }
        }
    }

    fn emissions(&self, found: &mut Vec<Contradiction>) {
        let (Some(kg), Some(kwh)) = ((self.get)("emissions"), (self.get)("energy_consumed")) else { return };
        if kwh <= 0.0 || kg < 0.0 {
            return;
        }
        let intensity = kg * 1000.0 / kwh;
        let columns = vec!["emissions", "energy_consumed"];
        if intensity > MAX_INTENSITY {
            let reason = format!("{intensity:.0} g/kWh: no electricity emits more than {MAX_INTENSITY}");
            found.push((columns, reason));
        } else if (intensity - OLD_WORLD_AVERAGE).abs() < 0.5 && self.country != "TUR" {
            let reason =
                "475 g/kWh: the world's average of 2019, not that of the place and the time (471 in 2024)";
            found.push((columns, reason.into()));
        }
    }
}

/// Whether a ratio is the square of a PUE rather than the PUE.
fn is_twice(ratio: f64, pue: f64) -> bool {
    pue > 1.0 + 2.0 * ROUNDING && !differs(ratio, pue * pue, 2.0 * ROUNDING) && differs(ratio, pue, ROUNDING)
}

/// Whether two numbers differ by more than a part of the larger.
pub(super) fn differs(one: f64, other: f64, part: f64) -> bool {
    (one - other).abs() > part * one.abs().max(other.abs())
}
