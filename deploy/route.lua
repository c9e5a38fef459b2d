-- Orthanc sends each radiograph that it stores to the detector; what the detector sends back is not sent again.
function OnStoredInstance(instance, tags, metadata, origin)
   local films = { CR = true, DX = true, RG = true }
   if films[tags['Modality']] and metadata['RemoteAET'] ~= 'ANOMALY' then
      SendToModality(instance, 'anomaly')
   end
end
