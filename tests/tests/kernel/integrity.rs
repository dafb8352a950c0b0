//! Goal: with data-integrity-alg every payload carries a digest that the other kind of node computes alike.
//! Method: writes of either Primary and resyncs each way with each algorithm, one bit that a relay turns over.

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
use tandem_tests::kernel::{Couple, Machine, Setup, Wire, noise};

use super::crash::LOSS;

fn with(algorithm: &str) -> Setup {
    Setup {
        net: format!("protocol C; data-integrity-alg {algorithm};"),
        ..Setup::default()
    }
}

fn carries_digests(algorithm: &str) {
    let couple = Couple::synced(Machine::shared(), with(algorithm));
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    couple.kernel.write((6 << 20) + 512, &noise(2, 512));
    couple.tandem.must(&["disconnect", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    couple.kernel.write(2 << 20, &noise(3, 1 << 20));
    couple.tandem.must(&["connect", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(1 << 20, &noise(4, 1 << 20), Fua::No).unwrap();
    client.write(8192 + 512, &noise(5, 1536), Fua::Yes).unwrap();
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    client.write(3 << 20, &noise(6, 1 << 20), Fua::No).unwrap();
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    // Reads through the peer carry digests, too.
    couple.tandem.must(&["detach", "r0"]);
    couple.tandem.wait_state("Connected", "Diskless/UpToDate");
    assert_eq!(client.read(1 << 20, 1 << 20).unwrap(), noise(4, 1 << 20));
    couple.tandem.must(&["attach", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn payloads_carry_digests_by_crc32c() {
    carries_digests("crc32c");
}

#[test]
fn payloads_carry_digests_by_sha1() {
    carries_digests("sha1");
}

#[test]
fn payloads_carry_digests_by_md5() {
    carries_digests("md5");
}

#[test]
fn a_payload_of_tandem_that_was_damaged_on_the_way_is_refused_and_sent_again() {
    let setup = Setup {
        wire: Wire::Tapped,
        ..with("crc32c")
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.may_say(LOSS);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    let data = noise(77, 4096);
    couple.tap().damage_next(&data[1000..1032]);
    client.write(1 << 20, &data, Fua::No).unwrap();
    let done = || couple.tap().is_damage_done().then_some(());
    wait::until("the damage", MOMENT, done, String::new);
    let noticed = || couple.kernel.log().contains(FAILED).then_some(());
    wait::until(FAILED, MOMENT, noticed, || couple.kernel.log());
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    let said = couple
        .kernel
        .messages()
        .into_iter()
        .find(|message| message.contains(FAILED))
        .unwrap();
    couple.may_say(&[said.leak(), "ProtocolError", "error receiving Data"]);
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

const FAILED: &str = "Digest integrity check FAILED";
