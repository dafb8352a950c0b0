//! `tandem_fuzz_targets::disk::dump_text` under the fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| tandem_fuzz_targets::disk::dump_text(input));
