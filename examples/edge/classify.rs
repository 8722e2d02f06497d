//! Classifies a PPM image by the C library: classify MODEL.sinf IMAGE.ppm.
//!
//! What classify.c does, from Rust: the standard library, no bindings and no crate.
//!
//!     rustc -O classify.rs -L /usr/local/lib

use std::alloc::{alloc, Layout};
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::{env, fs, mem, process, ptr};

/// `si_tensor_info`, as far as it is needed here: `struct_size` says so.
#[repr(C)]
struct TensorInfo {
    struct_size: usize,
    name: *const c_char,
    value_type: c_int,
    ndim: i32,
    shape: [i64; 8],
    bytes: u64,
}

enum Model {}
enum Context {}

#[link(name = "sparseinfer")]
extern "C" {
    fn si_last_error() -> *const c_char;
    fn si_model_load(path: *const c_char, how: c_int, out: *mut *mut Model) -> c_int;
    fn si_model_input(model: *const Model, index: usize, out: *mut TensorInfo) -> c_int;
    fn si_model_output(model: *const Model, index: usize, out: *mut TensorInfo) -> c_int;
    fn si_model_close(model: *mut Model);
    fn si_context_bytes(model: *const Model, threads: i32) -> u64;
    fn si_context_create(
        model: *const Model, memory: *mut c_void, bytes: usize, threads: i32, out: *mut *mut Context,
    ) -> c_int;
    fn si_context_run(
        context: *mut Context, inputs: *const *const c_void, outputs: *const *mut c_void, seconds: *mut f64,
    ) -> c_int;
}

const LOAD_MAP: c_int = 1;

fn check(status: c_int) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(si_last_error()) }.to_string_lossy().into_owned())
}

/// The pixels of a binary PPM of bytes, which has this size.
fn pixels(image: &[u8], width: i64, height: i64) -> Option<&[u8]> {
    let header = format!("P6 {width} {height} 255\n");
    let found = image.strip_prefix(header.as_bytes())?;
    (found.len() as i64 == 3 * width * height).then_some(found)
}

fn classify(model_path: &str, image_path: &str) -> Result<(usize, f32), String> {
    let path = CString::new(model_path).map_err(|error| error.to_string())?;
    let (mut model, mut context) = (ptr::null_mut(), ptr::null_mut());
    let mut x_info: TensorInfo = unsafe { mem::zeroed() };
    x_info.struct_size = mem::size_of::<TensorInfo>();
    let mut y_info: TensorInfo = unsafe { mem::zeroed() };
    y_info.struct_size = mem::size_of::<TensorInfo>();
    check(unsafe { si_model_load(path.as_ptr(), LOAD_MAP, &mut model) })?;
    check(unsafe { si_model_input(model, 0, &mut x_info) })?;
    check(unsafe { si_model_output(model, 0, &mut y_info) })?;
    if x_info.ndim != 4 || x_info.shape[..2] != [1, 3] {
        return Err("expected a model of one image".to_string());
    }

    let image = fs::read(image_path).map_err(|error| format!("{image_path}: {error}"))?;
    let bytes = pixels(&image, x_info.shape[3], x_info.shape[2])
        .ok_or("expected a binary PPM of bytes, of the model's size")?;
    let channel = |which: usize| bytes.iter().skip(which).step_by(3).map(|&byte| f32::from(byte) / 255.0);
    let x: Vec<f32> = (0..3).flat_map(channel).collect();
    let mut y = vec![0f32; y_info.bytes as usize / mem::size_of::<f32>()];

    // Everything that a run writes: the context, at a multiple of 64 bytes, and the output.
    let size = unsafe { si_context_bytes(model, 1) } as usize;
    let layout = Layout::from_size_align(size, 64).map_err(|error| error.to_string())?;
    let memory = unsafe { alloc(layout) }.cast();
    check(unsafe { si_context_create(model, memory, size, 1, &mut context) })?;
    let inputs = [x.as_ptr().cast()];
    let outputs = [y.as_mut_ptr().cast()];
    check(unsafe { si_context_run(context, inputs.as_ptr(), outputs.as_ptr(), ptr::null_mut()) })?;
    unsafe { si_model_close(model) };
    let best = (0..y.len()).max_by(|&a, &b| y[a].total_cmp(&y[b])).ok_or("expected a score")?;
    Ok((best, y[best]))
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let found = match &arguments[..] {
        [_, model, image] => classify(model, image),
        _ => Err("expected a model and an image".to_string()),
    };
    match found {
        Ok((class, score)) => println!("class {class}, score {score}"),
        Err(error) => {
            eprintln!("classify: {error}");
            process::exit(1);
        }
    }
}
