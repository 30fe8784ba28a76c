//! Chips that runs are planned on: peak, memory, power and the emissions of making them, each figure with its source.
//! A figure that no source gives is absent. Peaks are dense (no sparsity), in the number format named beside them.

use super::estimate::Embodied;
use super::range::{Factor, Range};
use crate::error::{Error, Result};

/// A kind of chip.
#[derive(Clone, Debug, PartialEq)]
pub struct Hardware {
    /// Its name.
    pub name: &'static str,
    /// Its family's name, for the family's usual member.
    pub alias: Option<&'static str>,
    /// Floating-point operations per second at most, in 1e12.
    pub peak_tflops: f64,
    /// The number format of that peak.
    pub peak_format: &'static str,
    /// Memory in 1e9 bytes; `None` for processors, whose memory is the owner's choice.
    pub memory_gb: Option<f64>,
    /// Memory bandwidth, in 1e9 bytes per second.
    pub bandwidth_gb_per_s: f64,
    /// Where peak, memory and bandwidth come from.
    pub source: &'static str,
    /// What it draws.
    pub power: Power,
    /// Emissions of making it; `None`: not published.
    pub embodied: Option<Making>,
}

/// What is known of a chip's power, in watts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Power {
    /// The board's limit; the computer around it comes on top.
    Board(f64),
    /// The thermal design power of a processor.
    Processor(f64),
    /// Mean power with the chip's share of the computer, low, mid and high, from runs that were published.
    System([f64; 3], &'static str),
    /// Nobody has published it.
    Unpublished,
}

/// Emissions of making one chip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Making {
    /// Kilograms of CO2-equivalent.
    pub kg: f64,
    /// What the figure includes.
    pub boundary: &'static str,
    /// Who says so.
    pub source: &'static str,
}

/// Years over which embodied emissions are spread: as in OLMo's report and NVIDIA's figures of its HGX boards.
const LIFETIME_YEARS: f64 = 4.0;

const A100: &str = "NVIDIA A100 data sheet";
const H100: &str = "NVIDIA H100 data sheet, half of the figure with sparsity";
const H200: &str = "NVIDIA H200 data sheet, half of the figure with sparsity";
const V100: &str = "NVIDIA V100 data sheet";
const B200: &str = "NVIDIA Blackwell data sheet, HGX B200 at 1000 W";
const TPU: &str = "Google Cloud TPU documentation, system architecture";
const WIDE: &str = "the maker's cores and base clock times 64: two 512-bit multiply-adds a cycle";
const NARROW: &str = "the maker's cores and base clock times 32: two 256-bit multiply-adds a cycle";

const V100_WATTS: Power = Power::System(
    [300.0, 330.0, 429.0],
    "330 W with the host, Patterson 2021 (GPT-3); from its 300 W board alone to 1.43 times that (Dodge 2022)",
);
const TPU_V3_WATTS: Power = Power::System(
    [220.0, 310.0, 352.0],
    "310 W with the host, Patterson 2021 (T5); from the chip's mean of 220 W to its maximum of 262 W with that host",
);
const TPU_V4_WATTS: Power = Power::System(
    [170.0, 326.0, 348.0],
    "326 W with the host, GLaM; from the chip's mean of 170 W to its maximum of 192 W with that host",
);

/// All of them.
pub const TABLE: &[Hardware] = &[
    // It has no bf16.
    Hardware { peak_format: "f16", ..chip("V100 SXM", 125.0, 32.0, 900.0, V100_WATTS, V100) }
        .also("V100")
        .made(9.78, "die", "LLMCarbon"),
    chip("A100 SXM 40GB", 312.0, 40.0, 1555.0, Power::Board(400.0), A100).made(
        318.0,
        "board and share of the server",
        "HotCarbon 2023",
    ),
    chip("A100 SXM 80GB", 312.0, 80.0, 2039.0, Power::Board(400.0), A100).also("A100").made(
        318.0,
        "board and share of the server",
        "HotCarbon 2023",
    ),
    chip("A100 PCIe 40GB", 312.0, 40.0, 1555.0, Power::Board(250.0), A100).made(
        181.0,
        "board",
        "Hubblo with the ADEME model",
    ),
    chip("A100 PCIe 80GB", 312.0, 80.0, 1935.0, Power::Board(300.0), A100),
    chip("H100 SXM", 989.4, 80.0, 3350.0, Power::Board(700.0), H100).also("H100").made(
        463.0,
        "board and share of the server",
        "OLMo, 3,700 kg for eight",
    ),
    chip("H100 PCIe", 756.5, 80.0, 2000.0, Power::Board(350.0), H100),
    chip("H200 SXM", 989.4, 141.0, 4800.0, Power::Board(700.0), H200).also("H200"),
    chip("B200 SXM", 2250.0, 192.0, 8000.0, Power::Board(1000.0), B200).also("B200").made(
        284.0,
        "board of eight, an eighth",
        "from the 0.50 g/EFLOP that NVIDIA gives for the HGX B200",
    ),
    chip("TPUv3", 123.0, 34.4, 900.0, TPU_V3_WATTS, TPU).made(7.0, "die", "LLMCarbon"),
    chip("TPUv4", 275.0, 34.4, 1200.0, TPU_V4_WATTS, TPU),
    chip("TPUv5e", 197.0, 16.0, 819.0, Power::Unpublished, TPU),
    chip("TPUv5p", 459.0, 95.0, 2765.0, Power::Unpublished, TPU),
    processor("Xeon Platinum 8380", 40.0 * 2.3 * 64.0, 8.0 * 3200.0, 270.0, WIDE),
    processor("Xeon Platinum 8592+", 64.0 * 1.9 * 64.0, 8.0 * 5600.0, 350.0, WIDE),
    processor("EPYC 7742", 64.0 * 2.25 * 32.0, 8.0 * 3200.0, 225.0, NARROW),
    processor("EPYC 7763", 64.0 * 2.45 * 32.0, 8.0 * 3200.0, 280.0, NARROW),
    processor("EPYC 9654", 96.0 * 2.4 * 32.0, 12.0 * 4800.0, 360.0, NARROW),
];

const fn chip(
    name: &'static str,
    peak_tflops: f64,
    memory_gb: f64,
    bandwidth_gb_per_s: f64,
    power: Power,
    source: &'static str,
) -> Hardware {
    Hardware {
        name,
        alias: None,
        peak_tflops,
        peak_format: "bf16",
        memory_gb: Some(memory_gb),
        bandwidth_gb_per_s,
        source,
        power,
        embodied: None,
    }
}

/// A server's processor: its peak in f32 at the base clock, its memory at eight bytes a transfer and channel.
const fn processor(
    name: &'static str,
    peak_gflops: f64,
    megatransfers_per_s: f64,
    tdp_watts: f64,
    source: &'static str,
) -> Hardware {
    Hardware {
        name,
        alias: None,
        peak_tflops: peak_gflops / 1e3,
        peak_format: "f32",
        memory_gb: None,
        bandwidth_gb_per_s: megatransfers_per_s * 8.0 / 1e3,
        source,
        power: Power::Processor(tdp_watts),
        embodied: None,
    }
}

/// The hardware of a name, whatever its case, spaces and signs.
///
/// # Errors
/// When the table has none; the error names the nearest.
pub fn find(name: &str) -> Result<&'static Hardware> {
    let wanted = letters(name);
    if let Some(found) = TABLE.iter().find(|hardware| hardware.names().any(|known| letters(known) == wanted))
    {
        return Ok(found);
    }
    let likeness = |hardware: &Hardware| {
        let scores = hardware.names().map(|known| strsim::jaro_winkler(&letters(known), &wanted));
        scores.fold(0.0, f64::max)
    };
    let mut ranked: Vec<(f64, &str)> = TABLE.iter().map(|it| (likeness(it), it.name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let nearest = ranked.iter().take(3).map(|(_, name)| (*name).to_owned()).collect();
    Err(Error::Hardware { given: name.to_owned(), nearest })
}

fn letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

impl Hardware {
    const fn also(self, alias: &'static str) -> Self {
        Hardware { alias: Some(alias), ..self }
    }

    const fn made(self, kg: f64, boundary: &'static str, source: &'static str) -> Self {
        Hardware { embodied: Some(Making { kg, boundary, source }), ..self }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.name].into_iter().chain(self.alias)
    }

    /// Operations per second of one chip at most.
    pub fn peak_flops(&self) -> Factor {
        let source = format!("{}, dense {}: {}", self.name, self.peak_format, self.source);
        Factor::new(Range::exact(self.peak_tflops * 1e12), source)
    }

    /// Mean power of one chip in training with its share of the computer around it, in watts; `None` when it is not
    /// published.
    pub fn system_watts(&self) -> Option<Factor> {
        match self.power {
            Power::Board(limit) => Some(Factor::new(
                // Low: GPT-3's V100s, boards of 300 W, took 330 W with the host. Mid and high: an H100 works at 0.85
                // of its limit at most (OLMo), with 0.43 (Dodge: GPUs are 70 % of a server) or 0.74 (OLMo 3) on top.
                Range { low: 1.10 * limit, mid: 0.85 * 1.43 * limit, high: 0.85 * 1.74 * limit },
                format!(
                    "{limit} W board ({}) times 1.10 (Patterson 2021, GPT-3), 0.85 * 1.43 (OLMo, Dodge 2022), \
                     0.85 * 1.74 (OLMo 3)",
                    self.source.split(',').next().unwrap_or(self.source),
                ),
            )),
            Power::Processor(tdp) => Some(modelled_watts(1.02 * tdp, &format!("the {tdp} W TDP"))),
            Power::System([low, mid, high], source) => Some(Factor::new(Range { low, mid, high }, source)),
            Power::Unpublished => None,
        }
    }

    /// Emissions of making one chip.
    pub fn embodied(&self) -> Option<Embodied> {
        self.embodied.map(|Making { kg, boundary, source }| Embodied {
            kg_per_chip: kg,
            lifetime_years: LIFETIME_YEARS,
            boundary: boundary.into(),
            source: source.into(),
        })
    }
}

/// Modelled power of a busy processor; `what` names what it was modelled from.
pub fn modelled_watts(watts: f64, what: &str) -> Factor {
    Factor::new(
        Range::around(watts, 0.40),
        format!("modelled from {what}, not measured; such models err by up to 40 % (Fischer 2025)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_found_in_any_spelling() {
        for (given, name) in [
            ("h100", "H100 SXM"),
            ("a100", "A100 SXM 80GB"),
            ("H100-PCIe", "H100 PCIe"),
            ("a100 sxm 40gb", "A100 SXM 40GB"),
            ("tpu_v5p", "TPUv5p"),
            ("epyc 9654", "EPYC 9654"),
            ("Xeon Platinum 8592+", "Xeon Platinum 8592+"),
        ] {
            assert_eq!(find(given).unwrap().name, name);
        }
    }

    #[test]
    fn unknown_hardware_names_the_nearest() {
        let message = find("H1000").unwrap_err().to_string();
        assert!(message.contains("H100 SXM"), "{message}");
    }

    #[test]
    fn no_two_entries_share_a_name() {
        let mut names: Vec<String> = TABLE.iter().flat_map(Hardware::names).map(letters).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_processors_peak_and_bandwidth_are_those_of_its_parts() {
        // AMD gives 204.8 GB/s for the EPYC 7763; 64 cores * 2.45 GHz * 32 are 5.0176 TFLOP/s.
        let epyc = find("EPYC 7763").unwrap();
        assert!((epyc.bandwidth_gb_per_s - 204.8).abs() < 1e-9);
        assert!((epyc.peak_tflops - 5.0176).abs() < 1e-9);
    }

    #[test]
    fn the_likely_power_is_that_of_published_runs() {
        // Patterson 2021 and GLaM: watts of one chip with its share of the host.
        for (name, watts) in [("V100", 330.0), ("TPUv3", 310.0), ("TPUv4", 326.0)] {
            assert_eq!(find(name).unwrap().system_watts().unwrap().range.mid, watts, "{name}");
        }
        for hardware in TABLE {
            if let Some(Factor { range, .. }) = hardware.system_watts() {
                assert!(range.low < range.mid && range.mid < range.high, "{}", hardware.name);
            }
        }
        assert_eq!(find("TPUv5e").unwrap().system_watts(), None);
    }
}
