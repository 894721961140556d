package qemu

// tscKHz returns the rate of the host's time stamp counter, which is the
// guest's too under TCG: there the guest is told, for its own calibration
// against an emulated timer hangs on a busy host. The rate is measured once per
// boot of the host and remembered in cacheDir, so that every start has the same
// kernel command line. It is 0 on architectures whose guests need not be told.
func tscKHz(cacheDir string) (uint64, error) {
	if known := readHostFacts(cacheDir).TSCKHz; known != 0 {
		return known, nil
	}
	measured, err := measureTSC()
	if err != nil || measured == 0 {
		return 0, err
	}
	facts := updateHostFacts(cacheDir, func(f *hostFacts) {
		if f.TSCKHz == 0 { // else another process was first
			f.TSCKHz = measured
		}
	})
	return facts.TSCKHz, nil
}

// plausibleTSC is true for rates from 100 MHz to 100 GHz.
func plausibleTSC(kHz uint64) bool { return kHz >= 100e3 && kHz <= 100e6 }
