//! Metadata of two volumes in one place would destroy both: found before anything is written or attached
//! (docs/spec/metadata.md 1.3). A slot of a shared device is a place of its own.

use std::path::PathBuf;

use tandem_config::{MetaDisk, ResolvedResource, ResolvedVolume};

use crate::configuration::Configuration;
use crate::failure::{CONFIGURATION, Failure};
use crate::invocation::Invocation;

/// What a volume does with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All of it, for data, and for internal metadata behind them.
    Data,
    /// All of it, for metadata.
    Metadata,
    /// One slot.
    Slot(u32),
}

#[derive(Clone, Debug)]
struct Place {
    device: PathBuf,
    part: Part,
    /// `R/V`.
    owner: String,
}

impl Place {
    fn collides(&self, other: &Place) -> bool {
        let same = |a: Part, b: Part| match (a, b) {
            (Part::Slot(a), Part::Slot(b)) => a == b,
            // One disk under two volumes is warned of when the configuration is read, and locked.
            (Part::Data, Part::Data) => false,
            _ => true,
        };
        self.owner != other.owner && self.device == other.device && same(self.part, other.part)
    }

    fn words(&self) -> String {
        let device = self.device.display();
        match self.part {
            Part::Data => format!("{device} (as the disk of {})", self.owner),
            Part::Metadata => format!("all of {device} (as the metadata of {})", self.owner),
            Part::Slot(index) => format!(
                "slot {index} of {device} (as the metadata of {})",
                self.owner
            ),
        }
    }
}

fn places(view: &ResolvedResource, volume: &ResolvedVolume) -> Vec<Place> {
    let owner = format!("{}/{}", view.name, volume.number);
    let place = |path: &str, part| Place {
        // The same device under two names is the same device.
        device: std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path)),
        part,
        owner: owner.clone(),
    };
    let mut all: Vec<Place> = volume
        .disk
        .iter()
        .map(|disk| place(disk, Part::Data))
        .collect();
    all.extend(match &volume.meta_disk {
        MetaDisk::Internal => None,
        MetaDisk::Flexible { device } => Some(place(device, Part::Metadata)),
        MetaDisk::Indexed { device, index } => Some(place(device, Part::Slot(*index))),
    });
    all
}

/// Whether the metadata of a resource's volumes have their places for themselves on this node.
pub(crate) fn check(
    invocation: &Invocation,
    configuration: &Configuration,
    view: &ResolvedResource,
) -> Result<(), Failure> {
    let mut others = Vec::new();
    for other in configuration.resources()? {
        others.extend(
            other
                .volumes
                .iter()
                .flat_map(|volume| places(&other, volume)),
        );
    }
    for own in view.volumes.iter().flat_map(|volume| places(view, volume)) {
        if let Some(other) = others.iter().find(|other| own.collides(other)) {
            return Err(Failure::new(
                CONFIGURATION,
                format!(
                    "{}: {} is also {}: the two volumes would destroy each other",
                    view.name,
                    own.words(),
                    other.words()
                ),
            )
            .line("Nothing was changed.")
            .next(invocation.adm("dump all   # every volume needs a slot, or a device, of its own: meta-disk DEVICE[INDEX]")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(device: &str, part: Part, owner: &str) -> Place {
        Place {
            device: PathBuf::from(device),
            part,
            owner: owner.to_owned(),
        }
    }

    #[test]
    fn slots_of_one_device_are_places_of_their_own_and_nothing_else_fits_beside_them() {
        let slot = place("/m", Part::Slot(1), "r0/0");
        assert!(!slot.collides(&place("/m", Part::Slot(2), "r0/1")));
        assert!(!slot.collides(&place("/n", Part::Slot(1), "r0/1")));
        assert!(slot.collides(&place("/m", Part::Slot(1), "r0/1")));
        assert!(slot.collides(&place("/m", Part::Metadata, "r1/0")));
        assert!(slot.collides(&place("/m", Part::Data, "r1/0")));
        assert!(!slot.collides(&slot), "it is the same volume");
        let disk = place("/d", Part::Data, "r0/0");
        assert!(!disk.collides(&place("/d", Part::Data, "r1/0")));
    }
}
