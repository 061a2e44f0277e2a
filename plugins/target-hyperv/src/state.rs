//! What a VM's folder holds, as its `points.json` says.
//!
//! That one small file, put in the place of the one before by a rename, is what commits, deletes and holds: a file that it does not
//! name belongs to nobody. What has to be done to disk files *after* such a moment stands in it as begun, is done again as often
//! as it was interrupted, and is taken out once it is done.

use crate::image::Format;
use crate::place::Place;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use vmferry_plugin_api::target::{Point, PointDisk};
use vmferry_plugin_api::{Error, ErrorCode};

/// The name of the file.
pub(crate) const FILE: &str = "points.json";
const FORMAT: u32 = 1;

/// All points of one job and VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    pub(crate) job: String,
    pub(crate) vm: String,
    /// Oldest first.
    pub(crate) points: Vec<KeptPoint>,
    /// The disk files, by name.
    pub(crate) images: BTreeMap<String, KeptImage>,
    /// What has to be done before anything else.
    pub(crate) begun: Vec<Begun>,
}

/// A committed point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptPoint {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) taken_at: i64,
    pub(crate) held: bool,
    pub(crate) damaged: Option<String>,
    pub(crate) disks: Vec<KeptDisk>,
}

/// A disk of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptDisk {
    pub(crate) disk: String,
    pub(crate) content: String,
    pub(crate) size: u64,
    pub(crate) stored: u64,
    pub(crate) digest: Option<String>,
    /// The file that shows it.
    pub(crate) image: String,
}

/// A disk file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptImage {
    /// The file that it gets from what it has not.
    pub(crate) parent: Option<String>,
    /// Its `DataWriteGuid`, or a VHD's unique id. If the file has another one, somebody else wrote to it.
    pub(crate) data: Id,
    /// The time that it was given, in seconds since 1970. A VHD has nothing in it that tells that a guest wrote to it; if the file has
    /// another time, somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) modified: Option<u64>,
}

/// A GUID's digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Id(pub(crate) vmferry_vhdx::Guid);

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = u128::from_str_radix(&text.replace('-', ""), 16);
        digits.map(|digits| Self(vmferry_vhdx::Guid::new(digits))).map_err(|_| format!("{text:?} is no identity"))
    }
}

/// Something that is done after the moment that it follows from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Begun {
    /// A disk file is changed in place.
    Apply {
        /// The file.
        image: String,
        /// The file that says where its blocks are from now on.
        updates: String,
        /// Whose turn it was to write when room for them was sought in it.
        file: Id,
        /// The `DataWriteGuid` that it had; the one that it gets stands with the image.
        before: Id,
        /// The time that it had, if it was given one; so does the one that it gets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        modified: Option<u64>,
    },
    /// A disk file takes over what its only child has, and then the child's name.
    Merge {
        /// The file.
        parent: String,
        /// The child.
        child: String,
    },
}

impl State {
    pub(crate) fn new(job: &str, vm: &str) -> Self {
        Self {
            format: FORMAT,
            job: job.to_owned(),
            vm: vm.to_owned(),
            points: Vec::new(),
            images: BTreeMap::new(),
            begun: Vec::new(),
        }
    }

    /// That of a VM's folder; `None` where nothing was committed yet.
    pub(crate) fn load(place: &impl Place, folder: &str) -> Result<Option<Self>, Error> {
        let path = format!("{folder}/{FILE}");
        let Some(bytes) = place.read(&path)? else { return Ok(None) };
        let state: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Error::damaged(format!("{path} cannot be read: {error}")))?;
        if state.format != FORMAT {
            return Err(Error::with_code(
                ErrorCode::Unsupported,
                format!("{path} has the format {}, and this plugin knows {FORMAT}; use a newer plugin", state.format),
            ));
        }
        let parents = state.images.values().filter_map(|image| image.parent.as_deref());
        let shown = state.points.iter().flat_map(KeptPoint::images);
        let names = state.images.keys().map(String::as_str).chain(parents).chain(shown);
        if let Some(name) = names.chain(state.begun.iter().flat_map(Begun::files)).find(|name| !is_name(name)) {
            return Err(Error::damaged(format!("{path} names the file {name:?}, which is none of ours")));
        }
        Ok(Some(state))
    }

    /// Puts this in the place of what was there; from then on it counts.
    pub(crate) fn save(&self, place: &impl Place, folder: &str) -> Result<(), Error> {
        let path = format!("{folder}/{FILE}");
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::damaged(format!("{path}: {error}")))?;
        place.replace(&path, &text)
    }

    pub(crate) fn point(&self, id: &str) -> Option<&KeptPoint> {
        self.points.iter().find(|point| point.id == id)
    }

    /// An image and what it gets from others, from itself to the root.
    pub(crate) fn chain(&self, image: &str) -> Vec<&str> {
        let mut chain: Vec<&str> = Vec::new();
        let mut next = self.images.get_key_value(image);
        while let Some((name, kept)) = next.filter(|(name, _)| !chain.contains(&name.as_str())) {
            chain.push(name);
            next = kept.parent.as_ref().and_then(|parent| self.images.get_key_value(parent));
        }
        chain
    }

    /// Images that get something from this one.
    pub(crate) fn children(&self, image: &str) -> Vec<&str> {
        let is_child = |kept: &KeptImage| kept.parent.as_deref() == Some(image);
        self.images.iter().filter(|(_, kept)| is_child(kept)).map(|(name, _)| name.as_str()).collect()
    }

    /// Points that show this image itself.
    pub(crate) fn shown_by(&self, image: &str) -> usize {
        self.points.iter().filter(|point| point.images().any(|shown| shown == image)).count()
    }

    /// Forgets images that no point needs. One that no point shows and one other needs is merged into that.
    pub(crate) fn forget_unneeded(&mut self) {
        let shown: BTreeSet<String> = self.points.iter().flat_map(|point| point.images().map(str::to_owned)).collect();
        let needed: BTreeSet<String> = shown.iter().flat_map(|image| self.chain(image)).map(str::to_owned).collect();
        self.images.retain(|name, _| needed.contains(name));
        for parent in needed.difference(&shown) {
            if let [child] = self.children(parent).as_slice() {
                let merge = Begun::Merge { parent: parent.clone(), child: (*child).to_owned() };
                if !self.begun.contains(&merge) {
                    self.begun.push(merge);
                }
            }
        }
        let images = &self.images;
        self.begun.retain(|begun| match begun {
            Begun::Apply { image, .. } => images.contains_key(image),
            Begun::Merge { parent, child } => images.contains_key(parent) && images.contains_key(child),
        });
    }

    /// Files that the state needs, beside itself.
    pub(crate) fn files(&self) -> BTreeSet<String> {
        let images = self.images.keys().flat_map(|image| [image.clone(), digests_of(image), started_of(image)]);
        let updates = self.begun.iter().filter_map(|begun| match begun {
            Begun::Apply { updates, .. } => Some(updates.clone()),
            Begun::Merge { .. } => None,
        });
        images.chain(updates).chain(self.points.iter().map(|point| metadata_of(&point.id))).collect()
    }
}

impl Begun {
    /// The files that it is about.
    pub(crate) fn files(&self) -> [&str; 2] {
        match self {
            Self::Apply { image, updates, .. } => [image, updates],
            Self::Merge { parent, child } => [parent, child],
        }
    }
}

impl KeptPoint {
    pub(crate) fn images(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().map(|disk| disk.image.as_str())
    }

    pub(crate) fn disk(&self, disk: &str) -> Option<&KeptDisk> {
        self.disks.iter().find(|kept| kept.disk == disk)
    }

    /// As the host wants to know it.
    pub(crate) fn to_point(&self, state: &State) -> Point {
        let disk = |kept: &KeptDisk| PointDisk {
            disk: kept.disk.clone(),
            content: kept.content.clone(),
            size: kept.size,
            stored: kept.stored,
            digest: kept.digest.clone(),
            extensions: Vec::new(),
        };
        Point {
            id: self.id.clone(),
            job: state.job.clone(),
            vm: state.vm.clone(),
            name: self.name.clone(),
            taken_at: self.taken_at,
            disks: self.disks.iter().map(disk).collect(),
            held: self.held,
            damaged: self.damaged.clone(),
            extensions: Vec::new(),
        }
    }
}

/// A text as part of a file's name, the same on file systems that do not tell capitals apart.
pub(crate) fn plain(text: &str) -> String {
    let is_plain = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || b"-_".contains(&letter);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    // A dot is in no plain text, so no two texts have the same name.
    format!("h.{}", &blake3::hash(text.as_bytes()).to_hex()[..32])
}

/// Whether it can be one of our files: a name, and no path.
pub(crate) fn is_name(name: &str) -> bool {
    name.bytes().all(|letter| letter.is_ascii_alphanumeric() || b"-_.~".contains(&letter)) && !name.starts_with('.')
}

/// The folder of a VM in the job's.
pub(crate) fn folders(job: &str, vm: &str) -> [String; 2] {
    let job = format!("job-{}", plain(job));
    let vm = format!("{job}/vm-{}", plain(vm));
    [job, vm]
}

/// What all files that a draft makes have in their names.
pub(crate) fn mark_of(draft: &str) -> String {
    format!("~{}.", plain(draft))
}

pub(crate) fn image_of(disk: &str, draft: &str, format: Format) -> String {
    format!("{}{}{}", plain(disk), mark_of(draft), format.suffix())
}

pub(crate) fn updates_of(disk: &str, draft: &str) -> String {
    format!("{}{}updates", plain(disk), mark_of(draft))
}

pub(crate) fn digests_of(image: &str) -> String {
    format!("{}digests", image.strip_suffix(Format::of(image).suffix()).unwrap_or(image))
}

/// The updates that stand for what is done to a disk file without any.
pub(crate) fn updates_beside(image: &str) -> String {
    format!("{}updates", image.strip_suffix(Format::of(image).suffix()).unwrap_or(image))
}

/// What is there beside a disk file, or its path, once a VM was made that writes to it.
pub(crate) fn started_of(image: &str) -> String {
    format!("{image}.started")
}

/// The disk that a file of ours is about, as its name has it.
pub(crate) fn disk_of(name: &str) -> &str {
    name.split('~').next().unwrap_or(name)
}

pub(crate) fn metadata_of(draft: &str) -> String {
    format!("vm{}json", mark_of(draft))
}
