//! The golden images: real metadata areas, packed, with a manifest of what is in them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_metadata::{AlGeometry, ByteLen, Layout, Placement, Superblock};

/// The folder of golden data.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// Unpacks a file.
pub(crate) fn unpack(path: &Path) -> Vec<u8> {
    let packed = std::fs::read(path).expect("golden image");
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut packed.as_slice(), &mut bytes).expect("xz");
    bytes
}

/// One golden image.
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) manifest: Value,
    /// The stored area.
    pub(crate) area: Vec<u8>,
    /// Where the area lies on the device.
    pub(crate) area_offset: u64,
    pub(crate) placement: Placement,
    pub(crate) device: ByteLen,
}

impl Image {
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.manifest[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{}: no {field}", self.name))
    }

    /// Bytes of the device; outside the area all is zero.
    pub(crate) fn at(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        for (index, byte) in out.iter_mut().enumerate() {
            let position = (offset + index as u64).checked_sub(self.area_offset);
            if let Some(stored) = position.and_then(|p| self.area.get(p as usize)) {
                *byte = *stored;
            }
        }
        out
    }

    pub(crate) fn superblock_block(&self) -> Vec<u8> {
        let sector = self
            .placement
            .superblock_sector(self.device)
            .expect("superblock on device");
        self.at(sector.0 * 512, 4096)
    }

    pub(crate) fn open(&self) -> (Superblock, Layout) {
        Superblock::open(self.placement, self.device, &self.superblock_block())
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub(crate) fn ring(&self, layout: &Layout) -> Vec<u8> {
        self.at(
            layout.activity_log_offset().0,
            layout.activity_log_len().0 as usize,
        )
    }
}

/// All images of the manifest, unless `wanted` says no to the name.
pub(crate) fn images(wanted: impl Fn(&str) -> bool) -> Vec<Image> {
    let folder = golden().join("metadata");
    let text = std::fs::read_to_string(folder.join("manifest.json")).expect("manifest");
    let manifest: Vec<Value> = serde_json::from_str(&text).expect("manifest is JSON");
    manifest
        .into_iter()
        .filter(|entry| wanted(entry["name"].as_str().expect("name")))
        .map(|entry| Image {
            name: entry["name"].as_str().expect("name").to_owned(),
            area: unpack(&folder.join(entry["file"].as_str().expect("file"))),
            area_offset: entry["area_offset"].as_u64().expect("area_offset"),
            placement: entry["placement"]
                .as_str()
                .expect("placement")
                .parse()
                .expect("placement"),
            device: ByteLen(entry["device_size"].as_u64().expect("device_size")),
            manifest: entry,
        })
        .collect()
}

pub(crate) fn image(name: &str) -> Image {
    let mut found = images(|candidate| candidate == name);
    assert_eq!(found.len(), 1, "image {name}");
    found.remove(0)
}

pub(crate) fn layout(placement: Placement, device: u64, stripes: u32, size: u32) -> Layout {
    let geometry = AlGeometry::new(stripes, size).expect("geometry");
    Layout::new(placement, ByteLen(device), geometry).expect("layout")
}
