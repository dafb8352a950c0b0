//! `tandem_fuzz_targets::nbd_transmission::nbd_transmission` under the fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| tandem_fuzz_targets::nbd_transmission::nbd_transmission(input));
