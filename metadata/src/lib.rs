//! The on-disk formats: superblock, activity log, bitmap and their placement, as bytes. Pure.
