package main

import (
	// Mozilla's roots, for registries and brokers whose authority the manifest does not pin: PID 1 has no /etc/ssl.
	_ "golang.org/x/crypto/x509roots/fallback"

	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/tee/configfs"
)

// teeDrivers are tried in order; the first whose hardware is there is the TEE of this boot.
var teeDrivers = []tee.Driver{
	configfs.TDX,
	configfs.SNP,
}
