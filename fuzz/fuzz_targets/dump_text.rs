//! The parser of `restore-md`: no text panics, and what is parsed is written and parsed to the same values, within
//! the metadata's area.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_metadata::restore::Restore;
use tandem_metadata::{ByteLen, Layout, Placement, Step};

fuzz_target!(|text: &str| {
    let Ok(restore) = Restore::parse(text) else {
        return;
    };
    assert_eq!(Restore::parse(&restore.to_text()).as_ref(), Ok(&restore));
    let Ok(layout) = Layout::new(Placement::Internal, ByteLen(1 << 30), restore.geometry) else {
        return;
    };
    let (start, len) = layout.area();
    for step in restore.steps(&layout) {
        if let Step::Write(write) = step {
            assert!(write.offset >= start);
            assert!(write.offset.0 + write.len().0 <= start.0 + len.0);
        }
    }
});
