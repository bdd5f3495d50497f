// Byte code as a host could slip in: each device says on a debug port that it begins, touches an address, and says that it
// came through. What is refused aborts its method before the second.
DefinitionBlock ("", "SSDT", 2, "AMPOUL", "BADAML", 1)
{
    OperationRegion (AMPP, SystemIO, 0x503, 1)
    Field (AMPP, ByteAcc, NoLock, Preserve) { AMPD, 8 }
    OperationRegion (IOAP, SystemMemory, 0xFEC00000, 4) // a device: the I/O APIC
    Field (IOAP, DWordAcc, NoLock, Preserve) { IOAV, 32 }
    OperationRegion (RAM0, SystemMemory, 0x01000000, 4) // RAM at 16 MiB
    Field (RAM0, DWordAcc, NoLock, Preserve) { RAMV, 32 }
    DataTableRegion (TABL, "SSDT", "AMPOUL", "BADAML")
    Field (TABL, DWordAcc, NoLock, Preserve) { SIGN, 32, LENG, 32 }

    Device (\_SB.AMP0) { Name (_HID, "AMP0000")
        Method (_INI) { AMPD = 0x61 Local0 = IOAV AMPD = 0x41 } }
    Device (\_SB.AMP1) { Name (_HID, "AMP0001")
        Method (_INI) { AMPD = 0x62 Local0 = RAMV AMPD = 0x42 } }
    Device (\_SB.AMP2) { Name (_HID, "AMP0002")
        Method (_INI) { AMPD = 0x63 RAMV = 0x21444142 AMPD = 0x43 } }
    Device (\_SB.AMP3) { Name (_HID, "AMP0003")
        Method (_INI) { AMPD = 0x64 Local0 = LENG AMPD = 0x44 } }
    Device (\_SB.AMP4) { Name (_HID, "AMP0004")
        Method (_INI) { AMPD = 0x65 LENG = 0x7FFFFFFF AMPD = 0x45 } }
    Device (\_SB.AMP5) { Name (_HID, "AMP0005")
        Method (_INI) {
            // A region whose address the byte code computes: the middle of what the kernel itself is in, byte by byte.
            AMPD = 0x66
            OperationRegion (DYN0, SystemMemory, Add (0x01000000, 0x00200000), 1)
            Field (DYN0, ByteAcc, NoLock, Preserve) { DYNV, 8 }
            Local0 = DYNV
            AMPD = 0x46 } }
    Device (\_SB.AMP6) { Name (_HID, "AMP0006")
        Method (_INI) {
            AMPD = 0x67 // what the firmware keeps for itself, as OVMF's memory map has it
            OperationRegion (NVS0, SystemMemory, 0x00810000, 4)
            Field (NVS0, DWordAcc, NoLock, Preserve) { NVSV, 32 }
            Local0 = NVSV
            AMPD = 0x47 } }
}
