"""Running native code: LLVM text to functions, threads, and compiled objects on disk. Knows no ops. Next: native.py."""
