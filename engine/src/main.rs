//! The `wattle` binary.

fn main() -> std::process::ExitCode {
    wattle_engine::cli::main()
}
