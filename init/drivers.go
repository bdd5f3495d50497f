package main

import (
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/tee/configfs"
)

// teeDrivers are tried in order; the first whose hardware is there is the TEE of this boot.
var teeDrivers = []tee.Driver{
	configfs.SNP,
}
