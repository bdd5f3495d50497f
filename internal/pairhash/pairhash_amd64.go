package pairhash

// extended says whether the processor has the SHA extensions, and SSSE3 and SSE4.1 beside them.
var extended = hasExtensions()

func hasExtensions() bool

// blocks adds whole blocks of 64 bytes to two states of SHA-256. What is behind the last whole block is not read.
//
//go:noescape
func blocks(a, b *[8]uint32, p []byte)
