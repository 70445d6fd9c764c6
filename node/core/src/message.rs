//! Where a container leaves the last word on its end: `terminationMessagePath` and `terminationMessagePolicy`.

use crate::{
    spec::{Container, MessagePolicy},
    volumes::{MountPlan, WrittenVolume, enclosing},
};

/// Bytes of a message, the last of its file. Source: kubelet `MaxContainerTerminationMessageLength`.
pub const MESSAGE_BYTES_MAX: u64 = 4096;
/// Bytes and names of the folder that a container has for its message alone.
const FOLDER_BYTES_MAX: u64 = 64 * 1024;

/// Where the message is found when the container has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessagePlan {
    /// The volume and the file's path in it; none where nothing can write it.
    pub file: Option<(String, String)>,
    /// A container that fails without a message has the end of its log as one.
    pub falls_back_to_logs: bool,
}

/// Where the container's message is, given what else it mounts, and the folder that it gets for it where it mounts none there.
pub fn plan(container: &Container, mounts: &[MountPlan]) -> (MessagePlan, Option<MountPlan>) {
    let path = container.termination_message_path.trim_end_matches('/');
    let falls_back_to_logs = container.termination_message_policy == MessagePolicy::FallbackToLogsOnError;
    let found = |file| MessagePlan { file, falls_back_to_logs };
    let Some((folder, name)) =
        path.rsplit_once('/').filter(|(folder, name)| !folder.is_empty() && !name.is_empty())
    else {
        return (found(None), None);
    };
    match enclosing(mounts, folder) {
        Some((mount, _)) if mount.read_only => (found(None), None),
        Some((mount, dir)) => {
            let file = [dir.as_str(), name]
                .iter()
                .filter(|part| !part.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join("/");
            (found(Some((mount.volume.clone(), file))), None)
        }
        None => {
            let volume = format!(".message-{}", container.name);
            let mount = MountPlan {
                volume: volume.clone(),
                sub_path: String::new(),
                guest_path: folder.to_owned(),
                read_only: false,
                written: Some(WrittenVolume { size_limit_bytes: Some(FOLDER_BYTES_MAX) }),
            };
            (found(Some((volume, name.to_owned()))), Some(mount))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(path: &str) -> Container {
        Container { name: "c".into(), termination_message_path: path.into(), ..Container::default() }
    }

    fn mount(guest_path: &str, sub_path: &str, read_only: bool) -> MountPlan {
        let (guest_path, sub_path) = (guest_path.into(), sub_path.into());
        MountPlan { volume: "v".into(), sub_path, guest_path, read_only, written: None }
    }

    fn file(path: &str, mounts: &[MountPlan]) -> (Option<(String, String)>, Option<String>) {
        let (plan, folder) = plan(&container(path), mounts);
        (plan.file, folder.map(|mount| mount.guest_path))
    }

    #[test]
    fn a_message_has_a_folder_of_its_own_unless_the_container_mounts_one_there() {
        let at = |volume: &str, path: &str| Some((volume.to_owned(), path.to_owned()));
        let default = file("/dev/termination-log", &[mount("/data", "", false)]);
        assert_eq!(default, (at(".message-c", "termination-log"), Some("/dev".to_owned())));
        let mounts = [mount("/data", "a", false), mount("/data/deep", "", false)];
        assert_eq!(file("/data/why", &mounts), (at("v", "a/why"), None));
        assert_eq!(file("/data/deep/er/why", &mounts), (at("v", "er/why"), None));
        assert_eq!(file("/database/why", &mounts), (at(".message-c", "why"), Some("/database".to_owned())));
        assert_eq!(file("/data/why", &[mount("/data", "", true)]), (None, None));
        assert_eq!(file("", &[]), (None, None));
    }
}
