//! Authentication: no challenge or response of any length panics, and only the right one passes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_protocol::auth::{HmacAlgorithm, SharedSecret, Verdict, check_challenge};

fuzz_target!(|input: &[u8]| {
    let Some((own, peer)) = input.split_first_chunk::<64>() else {
        return;
    };
    let secret = SharedSecret::new(&own[..usize::from(own[0] & 63)]);
    if check_challenge(own, peer).is_ok() {
        assert!((64..=128).contains(&peer.len()) && !peer.starts_with(own));
    }
    for algorithm in HmacAlgorithm::ALL {
        let right = algorithm.response(&secret, own);
        let accepted = algorithm.verify(&secret, own, peer) == Verdict::Accepted;
        assert_eq!(accepted, peer == right.as_ref());
        assert_eq!(
            algorithm.verify(&secret, own, right.as_ref()),
            Verdict::Accepted
        );
    }
});
