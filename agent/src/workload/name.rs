//! From a cgroup's path to the name of what runs in it. Pure.

/// Unit types that hold processes, by how their cgroup's name ends (systemd.unit(5)).
const UNITS: [&str; 2] = [".service", ".scope"];

/// The innermost systemd service or scope on the path, else the path itself.
///
/// Cgroups that a service makes below its own belong to the service.
pub fn of(path: &str) -> String {
    path.rsplit('/')
        .find(|component| UNITS.iter().any(|unit| component.ends_with(unit) && component.len() > unit.len()))
        .unwrap_or(path)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_named_by_the_innermost_service_or_scope() {
        for (path, name) in [
            ("/system.slice/ssh.service", "ssh.service"),
            ("/system.slice/containerd.service/worker/1", "containerd.service"),
            ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/firefox.service", "firefox.service"),
            ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ] {
            assert_eq!(of(path), name, "{path}");
        }
    }

    #[test]
    fn outside_systemd_the_path_is_the_name() {
        for path in ["/", "/batch/job-7", "/system.slice", "/.service"] {
            assert_eq!(of(path), path);
        }
    }

    proptest! {
        #[test]
        fn any_path_has_a_name(path in "(/[a-z@.\\\\]{0,12}){0,6}") {
            let name = of(&path);
            prop_assert!(path.ends_with(&name) || path.contains(&name));
        }
    }
}
