//go:build !amd64

package pairhash

const extended = false

func blocks(a, b *[8]uint32, p []byte) { panic("pairhash: no such processor") }
