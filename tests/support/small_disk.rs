//! A disk that is soon full: a tmpfs of a few MiB.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// A fresh one of `mib`; `Err` says why this machine has none (no root, no mounts).
    pub fn mount(mib: u32) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a tmpfs needs root".to_owned());
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let disk = folder.path().join("disk");
        std::fs::create_dir(&disk).expect("a mount point");
        let options = format!("size={mib}m");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&disk);
        let output = command.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(Self { folder }),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Takes `mib` away with a file, whose removal gives them back.
    pub fn fill(&self, mib: usize) -> PathBuf {
        let file = self.path().join("filler");
        std::fs::write(&file, vec![1; mib << 20]).expect("so much is free");
        file
    }

    fn unmount(path: &Path) {
        let unmounted = Command::new("umount").arg(path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("a test left {} mounted", path.display());
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Self::unmount(&self.path());
    }
}
