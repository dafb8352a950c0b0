//! `tandem_fuzz_targets::black_box::black_box` under the fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| tandem_fuzz_targets::black_box::black_box(input));
