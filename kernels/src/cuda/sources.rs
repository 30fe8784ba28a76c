//! The text of every kernel, carried in the binary.

/// A file of `kernels/cuda`.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, by which `#include` and messages know it.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What the sources include.
pub static HEADERS: [Source; 8] = [
    Source { name: "attention.cuh", text: include_str!("../../cuda/attention.cuh") },
    Source { name: "attention_backward.cuh", text: include_str!("../../cuda/attention_backward.cuh") },
    Source { name: "attention_forward.cuh", text: include_str!("../../cuda/attention_forward.cuh") },
    Source { name: "common.cuh", text: include_str!("../../cuda/common.cuh") },
    Source { name: "counting_sort.cuh", text: include_str!("../../cuda/counting_sort.cuh") },
    Source { name: "grouped_gemm.cuh", text: include_str!("../../cuda/grouped_gemm.cuh") },
    Source { name: "hopper.cuh", text: include_str!("../../cuda/hopper.cuh") },
    Source { name: "mma.cuh", text: include_str!("../../cuda/mma.cuh") },
];

/// What NVRTC compiles, each file a module.
pub static SOURCES: [Source; 20] = [
    Source { name: "adamw.cu", text: include_str!("../../cuda/adamw.cu") },
    Source { name: "attention_128.cu", text: include_str!("../../cuda/attention_128.cu") },
    Source { name: "attention_32.cu", text: include_str!("../../cuda/attention_32.cu") },
    Source { name: "attention_64.cu", text: include_str!("../../cuda/attention_64.cu") },
    Source { name: "attention_96.cu", text: include_str!("../../cuda/attention_96.cu") },
    Source { name: "attention_delta.cu", text: include_str!("../../cuda/attention_delta.cu") },
    Source { name: "bias.cu", text: include_str!("../../cuda/bias.cu") },
    Source { name: "cross_entropy.cu", text: include_str!("../../cuda/cross_entropy.cu") },
    Source { name: "elementwise.cu", text: include_str!("../../cuda/elementwise.cu") },
    Source { name: "embedding.cu", text: include_str!("../../cuda/embedding.cu") },
    Source { name: "grouped_gemm.cu", text: include_str!("../../cuda/grouped_gemm.cu") },
    Source { name: "grouped_gemm_hopper.cu", text: include_str!("../../cuda/grouped_gemm_hopper.cu") },
    Source { name: "permute.cu", text: include_str!("../../cuda/permute.cu") },
    Source { name: "reduce.cu", text: include_str!("../../cuda/reduce.cu") },
    Source { name: "rms_norm.cu", text: include_str!("../../cuda/rms_norm.cu") },
    Source { name: "rope.cu", text: include_str!("../../cuda/rope.cu") },
    Source { name: "router.cu", text: include_str!("../../cuda/router.cu") },
    Source { name: "routing_load.cu", text: include_str!("../../cuda/routing_load.cu") },
    Source { name: "routing_plan.cu", text: include_str!("../../cuda/routing_plan.cu") },
    Source { name: "swiglu.cu", text: include_str!("../../cuda/swiglu.cu") },
];

/// The source of this name.
pub fn source(name: &str) -> Option<&'static Source> {
    SOURCES.iter().find(|source| source.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_carried() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".cu"))
            .collect();
        let mut carried: Vec<_> = HEADERS.iter().chain(&SOURCES).map(|source| source.name).collect();
        files.sort();
        carried.sort();
        assert_eq!(carried, files);
    }
}
