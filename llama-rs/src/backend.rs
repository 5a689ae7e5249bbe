//! The library as a whole.

use std::ffi::CStr;
use std::fmt;
use std::sync::{Mutex, Once};

use llama_sys as sys;

/// Proof that llama.cpp has been initialised. Cheap to make and to copy.
#[derive(Clone, Debug)]
pub struct Backend {
    _initialised: (),
}

/// Which llama.cpp this program contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// llama.cpp's build, such as `b12032`.
    pub llama_build: &'static str,
    /// ggml's version, such as `0.28.0`.
    pub ggml_version: &'static str,
    /// First 12 hexadecimal digits of the digest of the patch series.
    pub patch_set_digest: &'static str,
    /// CPU features that the library uses, as llama.cpp prints them.
    pub cpu_features: String,
}

impl fmt::Display for BuildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "llama.cpp {} (ggml {}), patches {}",
            self.llama_build, self.ggml_version, self.patch_set_digest
        )
    }
}

impl Backend {
    /// Initialises llama.cpp once per process; later calls return at once. Its log is dropped until
    /// [`route_logs`](crate::route_logs) is called.
    pub fn init() -> Backend {
        static INIT: Once = Once::new();
        INIT.call_once(|| {
            crate::assertions::install();
            crate::logs::install();
            // SAFETY: called once, before any other function of the library except the log's.
            unsafe { sys::llama_backend_init() }
        });
        Backend { _initialised: () }
    }

    /// Which llama.cpp this program contains.
    pub fn build_info() -> BuildInfo {
        let _backend = Backend::init();
        BuildInfo {
            llama_build: sys::LLAMA_BUILD,
            ggml_version: sys::GGML_VERSION,
            patch_set_digest: sys::PATCH_SET_DIGEST
                .get(..12)
                .unwrap_or(sys::PATCH_SET_DIGEST),
            cpu_features: cpu_features(),
        }
    }
}

fn cpu_features() -> String {
    // llama_print_system_info builds its answer in a static string: one caller at a time.
    static SYSTEM_INFO: Mutex<()> = Mutex::new(());
    let _one_at_a_time = SYSTEM_INFO
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: the string is valid until the next call, which the lock holds off.
    let text = unsafe { CStr::from_ptr(sys::llama_print_system_info()) };
    text.to_string_lossy().trim().to_owned()
}
