# Makes a VM of a recovery point that vmferry keeps in this folder, and does not start it.
#
#   .\register.ps1                                   the newest point, its disks under new ones that take the changes
#   .\register.ps1 -Point ID -Overlays D:\test -Switches @{ 'prod' = 'vSwitch1' }
#   .\register.ps1 -InPlace                          the point's own disks: the VM lives here from now on
#
# Without -InPlace nothing that vmferry keeps is written. While such a VM exists, keep vmferry from changing what it reads: hold the
# job, or have it keep its points as copies. With -InPlace vmferry adds nothing to these disks any more, which a
# file beside each says; its next run is a full copy.
# Names of networks, VMs and disks are data here: they are read from JSON, never run.
#Requires -Modules Hyper-V
[CmdletBinding()]
param(
    [string] $Point,
    [hashtable] $Switches = @{},
    [string] $Overlays,
    [switch] $InPlace
)
Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'

function Read-Json([string] $Path) {
    ConvertFrom-Json ([IO.File]::ReadAllText($Path, [Text.Encoding]::UTF8))
}

$state = Read-Json (Join-Path $PSScriptRoot 'points.json')
if (@($state.begun).Count -gt 0) {
    throw 'A change of these disks was interrupted. Run "vmferry verify" first, which ends it.'
}
$points = @($state.points)
$chosen = if ($Point) { $points | Where-Object { $_.id -eq $Point } } else { $points | Select-Object -Last 1 }
if (-not $chosen) { throw "There is no such point here. These are: $(($points | ForEach-Object { $_.id }) -join ', ')" }
if ($chosen.damaged) { throw "The point is damaged: $($chosen.damaged)" }
if ($InPlace -and $chosen.id -ne $points[-1].id) { throw 'Only the newest point can be used in place: newer ones need the disks of older ones.' }

$file = Get-ChildItem -LiteralPath $PSScriptRoot -Filter 'vm~*.json' | Where-Object { $_.Name -eq "vm~$($chosen.id).json" }
if (-not $file) { throw "The description of the VM is not here: vm~$($chosen.id).json" }
$metadata = Read-Json $file.FullName
if ($metadata.format -ne 1) { throw "The description of the VM has the unknown format $($metadata.format)." }
$machine = $metadata.vm
$generation = if ($machine.firmware -eq 'uefi') { 2 } else { 1 }

# What the VM boots from comes first: a guest of generation 1 boots from the first disk only.
$order = @{ Expression = { -not $_.bootable } }, 'position'
$disks = foreach ($disk in @($metadata.disks | Sort-Object -Property $order)) {
    $kept = @($chosen.disks | Where-Object { $_.disk -eq $disk.disk })
    if ($kept.Count -ne 1) { continue }
    if ($kept[0].image -notmatch '^[A-Za-z0-9._~-]+\.vhdx?$') { throw 'points.json names a file that is none of vmferry''s.' }
    if ($generation -eq 2 -and $kept[0].image -notmatch '\.vhdx$') {
        throw 'This VM boots by UEFI, and Hyper-V attaches no VHD to a VM of generation 2. Convert-VHD makes a VHDX of a VHD; for the points to come set format = "vhdx".'
    }
    Join-Path $PSScriptRoot $kept[0].image
}
$disks = @($disks)
if (-not $InPlace) {
    if (-not $Overlays) { $Overlays = Join-Path $PSScriptRoot ('overlays-' + [Guid]::NewGuid()) }
    New-Item -ItemType Directory -Force -Path $Overlays | Out-Null
    $disks = @(foreach ($disk in $disks) {
        $overlay = Join-Path $Overlays ([IO.Path]::GetFileName($disk))
        New-VHD -Differencing -ParentPath $disk -Path $overlay | Out-Null
        $overlay
    })
}
$marks = @(if ($InPlace) { $disks | ForEach-Object { "$_.started" } })

# Hyper-V's smallest memory is 32 MiB, and it takes whole 2 MiB.
$memory = [int64] ([math]::Max(16, [math]::Ceiling($machine.memory / 2mb)) * 2mb)
$vm = New-VM -Name $machine.name -Generation $generation -MemoryStartupBytes $memory -NoVHD
try {
    # What vmferry goes by: a VHD does not say that it was written to.
    foreach ($mark in $marks) { [IO.File]::WriteAllText($mark, "This disk belongs to the VM $($vm.Id).") }
    Set-VM -VM $vm -Notes ([string] $machine.description) -StaticMemory -AutomaticStartAction Nothing `
        -ProcessorCount ([math]::Max(1, $machine.vcpus)) -CheckpointType Disabled
    Get-VMNetworkAdapter -VM $vm | Remove-VMNetworkAdapter
    if ($generation -eq 1) {
        # Three disks go to the IDE controllers, where the optical drive that New-VM made gives way, the others to SCSI.
        Get-VMDvdDrive -VM $vm | Remove-VMDvdDrive
    }
    for ($index = 0; $index -lt $disks.Count; $index++) {
        if ($generation -eq 1 -and $index -lt 3) {
            Add-VMHardDiskDrive -VM $vm -ControllerType IDE -ControllerNumber ([math]::Floor($index / 2)) `
                -ControllerLocation ($index % 2) -Path $disks[$index]
        } else {
            $place = if ($generation -eq 1) { $index - 3 } else { $index }
            $controller = [math]::Floor($place / 64)
            while (@(Get-VMScsiController -VM $vm).Count -le $controller) { Add-VMScsiController -VM $vm }
            Add-VMHardDiskDrive -VM $vm -ControllerType SCSI -ControllerNumber $controller `
                -ControllerLocation ($place % 64) -Path $disks[$index]
        }
    }
    foreach ($interface in @($metadata.interfaces | Sort-Object position)) {
        $mac = ([string] $interface.mac) -replace '[:-]', ''
        if ($mac -notmatch '^[0-9A-Fa-f]{12}$') { throw "Not a MAC address: $($interface.mac)" }
        $adapter = Add-VMNetworkAdapter -VM $vm -StaticMacAddress $mac -Passthru
        $network = [string] $interface.network
        if ($Switches.ContainsKey($network)) {
            Connect-VMNetworkAdapter -VMNetworkAdapter $adapter -SwitchName $Switches[$network]
        } else {
            Write-Warning "The interface $mac, which was on '$network', is not connected: no switch is named for it."
        }
    }
    if ($generation -eq 2) {
        $secure = if ($machine.secure_boot) { 'On' } else { 'Off' }
        Set-VMFirmware -VM $vm -EnableSecureBoot $secure
        $boot = Get-VMHardDiskDrive -VM $vm | Select-Object -First 1
        if ($boot) { Set-VMFirmware -VM $vm -FirstBootDevice $boot }
    }
} catch {
    Remove-VM -VM $vm -Force
    foreach ($mark in $marks) { [IO.File]::Delete($mark) }
    throw
}
$vm
